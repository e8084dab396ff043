"""ImageNet (ILSVRC 2012) and ImageNet-100, whose JPEG files stay where they are: only their list is prepared.

Its terms forbid an automatic download, so somebody with access must place the files. Labels are positions in the
sorted list of WordNet ids. Rows are sorted by class, then by file name, whatever the folder layout.
"""

from __future__ import annotations

import csv
import functools
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from wmse.datasets.archives import extract_class_tars, unpack_tar, unpacked_limit
from wmse.datasets.build import verify_raw
from wmse.datasets.source import Archive, Listing, Log, Rows, Source
from wmse.errors import DataError
from wmse.files import hashing_seen_by
from wmse.progress import progress_bar, tracked

_WNID = re.compile(r"n\d{8}")
_IMAGE_SUFFIXES = (".jpeg", ".jpg")
_VAL_LABELS = "LOC_val_solution.csv"


@functools.cache
def imagenet100_wnids() -> tuple[str, ...]:
    """The 100 WordNet ids of ImageNet-100 (the list of Tian et al., Contrastive Multiview Coding), sorted."""
    return tuple(Path(__file__).with_name("imagenet100_wnids.txt").read_text(encoding="utf-8").split())


def instructions(source: Source, raws: list[Path]) -> str:
    """What a user has to place where."""
    train, val = source.archives
    places = " or ".join(str(raw) for raw in raws)
    return (
        f"{source.title} may not be downloaded automatically. Get it from {source.homepage} (an account is needed) and "
        f"place in {places}:\n"
        f"  training images, one of\n"
        f"    train/<wnid>/*.JPEG (class folders; also below ILSVRC/Data/CLS-LOC/)\n"
        f"    {train.name} ({train.size:,} bytes, {train.digest}; unpacked there)\n"
        f"  validation images, one of\n"
        f"    val/<wnid>/*.JPEG (class folders)\n"
        f"    val/*.JPEG and {_VAL_LABELS} (Kaggle's file; images also below ILSVRC/Data/CLS-LOC/)\n"
        f"    {val.name} and {_VAL_LABELS} ({val.size:,} bytes, {val.digest})\n"
        f"Then run `wmse prepare {source.name}`. A symbolic link is enough. The devkit's label file is not supported."
    )


def scan(source: Source, data_root: Path, log: Log) -> Listing:
    """List the images of all classes; unpacks the official archives first if they are what was placed.

    ImageNet-100 takes its images from its own raw folder or, failing that, from ImageNet's. Raises DataError with
    instructions if there are none, or naming folder, expected and found number if some are missing.
    """
    names = dict.fromkeys((source.name, "imagenet"))
    raws = [(Path(data_root) / name / "raw").absolute() for name in names]
    wnids = imagenet100_wnids() if source.name == "imagenet100" else None
    archive = source.archives[0].name
    raw = next((raw for raw in raws if _images_root(raw, "train") or (raw / archive).is_file()), None)
    if raw is None:
        raise DataError(instructions(source, raws))
    _unpack(source, raw, wnids, log)
    return list_class_folders(source, raw, wnids)


def list_class_folders(source: Source, raw: Path, wnids: tuple[str, ...] | None) -> Listing:
    """List the images of the classes `wnids` (None: of all) below `raw`, whose folders must be complete."""
    train_root, val_root = _images_root(raw, "train"), _images_root(raw, "val")
    if val_root is None:
        raise DataError(f"{raw / 'val'}: no validation images. {instructions(source, [raw])}")
    classes = _classes(source, train_root / "train", wnids)
    folders = tracked(classes, "classes", f"{source.name}: listing")
    train = [(wnid, path) for wnid in folders for path in _images(train_root / "train" / wnid)]
    test = _validation_images(source, raw, val_root / "val", classes)
    return Listing(raw, classes, {"train": train, "test": test})


def _images_root(raw: Path, split: str) -> Path | None:
    return next((root for root in (raw, raw / "ILSVRC/Data/CLS-LOC") if (root / split).is_dir()), None)


def _unpack(source: Source, raw: Path, wnids: tuple[str, ...] | None, log: Log) -> None:
    train, val = source.archives
    path = raw / train.name
    if path.is_file():
        present = {folder.name for folder in (raw / "train").glob("n*")}
        missing = len(present) < source.num_classes if wnids is None else not present.issuperset(wnids)
        if missing:
            _verify(path, train, log)
            extract_class_tars(path, raw / "train", wnids, log)
    path = raw / val.name
    if path.is_file() and _images_root(raw, "val") is None:
        _verify(path, val, log)
        log(f"unpacking {path}")
        unpack_tar(path, raw / "val", unpacked_limit(val.size))


def _verify(path: Path, archive: Archive, log: Log) -> None:
    log(f"checking {path}")
    with progress_bar(archive.size, "B", f"checking {path.name}") as bar, hashing_seen_by(bar.update):
        verify_raw(path, archive)


def _classes(source: Source, train: Path, wnids: tuple[str, ...] | None) -> list[str]:
    present = sorted(entry.name for entry in train.iterdir() if _WNID.fullmatch(entry.name) and entry.is_dir())
    if wnids is not None:
        missing = sorted(set(wnids) - set(present))
        if missing:
            raise DataError(f"{train}: {len(missing)} of {len(wnids)} class folders are missing, first {missing[0]}")
        return sorted(wnids)
    if len(present) != source.num_classes:
        raise DataError(f"{train}: {len(present)} class folders, expected {source.num_classes}")
    return present


def _images(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(_IMAGE_SUFFIXES) and e.is_file())
    strange = next((name for name in names if not name.isprintable()), None)
    if strange is not None:  # the list of files has one on every line
        raise DataError(f"{folder}: the file name {strange!r} cannot be listed; rename or remove it")
    return [folder / name for name in names]


def _validation_images(source: Source, raw: Path, val: Path, classes: list[str]) -> list[tuple[str, Path]]:
    if any((val / wnid).is_dir() for wnid in classes):
        missing = [wnid for wnid in classes if not (val / wnid).is_dir()]
        if missing:
            raise DataError(f"{val / missing[0]}: this class folder is missing")
        images = [(wnid, path) for wnid in classes for path in _images(val / wnid)]
    else:
        labels = _validation_labels(raw / _VAL_LABELS, val)
        chosen = set(classes)
        listed = [(labels.get(path.stem), path) for path in _images(val)]
        unknown = next((path for wnid, path in listed if wnid is None), None)
        if unknown is not None:
            raise DataError(f"{unknown}: {raw / _VAL_LABELS} gives no label for it")
        images = sorted((wnid, path) for wnid, path in listed if wnid in chosen)
    per_class = source.splits["test"].per_class
    counts = Counter(wnid for wnid, _ in images)
    for wnid in classes:
        if counts[wnid] != per_class:
            raise DataError(f"{val}: class {wnid} has {counts[wnid]} images, expected {per_class}")
    return images


def _validation_labels(path: Path, val: Path) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"{path}: missing; {val} has no class folders, so its labels are read from this file")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is None or not {"ImageId", "PredictionString"} <= set(rows.fieldnames):
                raise DataError(f"{path}: expected the columns ImageId and PredictionString")
            return {row["ImageId"]: (row["PredictionString"] or "").partition(" ")[0] for row in rows}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error}); get it again") from None


# Names, sizes and digests of the official archives, as in torchvision and in public listings of the files; no URLs,
# because the terms of access must be accepted first.
_ARCHIVES = (
    Archive(
        name="ILSVRC2012_img_train.tar",
        size=147_897_477_120,
        digest="md5:1d675b47d978889d74fa0da5fadfb00e",
        form="tar of class tars",
    ),
    Archive(
        name="ILSVRC2012_img_val.tar",
        size=6_744_924_160,
        digest="md5:29b22e2961454d5413ddabcf34fc5622",
        form="tar",
    ),
)
_TRAIN_1K = Rows("train", 0, 1_281_167)
_TRAIN_100 = Rows("train", 0, 126_689)

IMAGENET = Source(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    homepage="https://image-net.org/download.php",
    licence="non-commercial research and education, terms of access to be accepted on image-net.org",
    num_classes=1000,
    image_size=None,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    splits={"pretrain": _TRAIN_1K, "train": _TRAIN_1K, "test": Rows("test", 0, 50_000, 50)},
    archives=_ARCHIVES,
    scan=scan,
)

IMAGENET100 = replace(
    IMAGENET,
    name="imagenet100",
    title="ImageNet-100",
    num_classes=100,
    splits={"pretrain": _TRAIN_100, "train": _TRAIN_100, "test": Rows("test", 0, 5_000, 50)},
)

SOURCES = (IMAGENET100, IMAGENET)
