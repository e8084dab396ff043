"""Small files in the official layouts of the benchmarks, and sources that are cut down to fit them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from wmse.datasets import SOURCES, Prepared, Source
from wmse.datasets.build import prepare_source
from wmse.datasets.source import Rows


def quiet(line: str) -> None:
    pass


def prepare_raw(source: Source, data_root: Path) -> Prepared:
    """What becomes of the raw files below `data_root`; nothing is downloaded."""
    return prepare_source(source, data_root, download=False, log=quiet)


def small(source: Source, counts: dict[str, tuple[int, int | None]], **changes) -> Source:
    """`source` with `counts` = {split: (rows, per class)} and no published file digests."""
    splits = {name: Rows(source.splits[name].array, 0, rows, each) for name, (rows, each) in counts.items()}
    archives = tuple(
        dataclasses.replace(archive, files=dict.fromkeys(archive.files, "")) for archive in source.archives
    )
    return dataclasses.replace(source, splits=splits, archives=archives, **changes)


def with_archive(source: Source, path: Path) -> Source:
    """`source` whose archive of that name has the size and digest of the file at `path`."""
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    archives = tuple(
        dataclasses.replace(archive, size=path.stat().st_size, digest=digest) if archive.name == path.name else archive
        for archive in source.archives
    )
    return dataclasses.replace(source, archives=archives)


def pack(folder: Path, archive: Path) -> None:
    """Make a zip file or a gzipped tar file of a folder, by the suffix of `archive`."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, folder.name)


def jpeg(shade: int, size: int = 64, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size), shade if mode == "L" else (shade, 0, 255 - shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar_bytes(members: dict[str, bytes]) -> bytes:
    """A tar file with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_source(name: str) -> Source:
    classes = SOURCES[name].num_classes
    train = 5 * classes if name == "cifar10" else 2 * classes
    return small(SOURCES[name], {"pretrain": (train, None), "train": (train, train // classes), "test": (classes, 1)})


def cifar_batches(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Batch name -> pixels (n, 3072) and labels (n,) with every class equally often."""
    classes = SOURCES[name].num_classes
    if name == "cifar10":
        sizes = {**{f"data_batch_{i}": classes for i in range(1, 6)}, "test_batch": classes}
    else:
        sizes = {"train": 2 * classes, "test": classes}
    rng = np.random.default_rng(1)
    return {
        batch: (rng.integers(0, 256, (size, 3072), dtype=np.uint8), rng.permutation(np.arange(size) % classes))
        for batch, size in sizes.items()
    }


def python2_pickle(batch: dict[bytes, object]) -> bytes:
    """The pickle that Python 2 wrote: protocol 2, byte strings, numpy.core."""
    data = batch[b"data"]
    out = [b"\x80\x02}("]
    for key, value in batch.items():
        out.append(b"U" + bytes([len(key)]) + key)
        if value is data:
            out.append(
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(J"
                + len(data).to_bytes(4, "little") + b"M\x00\x0ct" + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
                + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
                + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tb"
            )  # fmt: skip
        else:
            out.append(b"](" + b"".join(b"K" + bytes([label]) for label in value) + b"e")
    return b"".join(out) + b"u."


def write_cifar(name: str, form: str, raw: Path, dump: Callable[[dict], bytes] = python2_pickle) -> Path:
    """The batches in the form "python" or "binary"; returns their folder."""
    archive = next(archive for archive in SOURCES[name].archives if archive.form == form)
    folder = raw / archive.folder
    for batch, (pixels, labels) in cifar_batches(name).items():
        coarse = labels // 5
        if form == "python":
            keys = {b"labels": labels.tolist()}
            if name == "cifar100":
                keys = {b"coarse_labels": coarse.tolist(), b"fine_labels": labels.tolist()}
            put(folder / batch, dump({b"data": pixels, **keys}))
        else:
            columns = [labels[:, None]] if name == "cifar10" else [coarse[:, None], labels[:, None]]
            put(folder / f"{batch}.bin", np.concatenate([*columns, pixels], axis=1).astype(np.uint8).tobytes())
    return folder


# --- STL-10 -----------------------------------------------------------------------------------------------------------


def stl_source() -> Source:
    return small(SOURCES["stl10"], {"pretrain": (23, None), "train": (20, 2), "test": (10, 1)})


def write_stl10(raw: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Returns the folder and the images (33, 3, 96, 96) and labels (33,): 20 train, 3 unlabeled, 10 test."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (33, 3, 96, 96), dtype=np.uint8)
    labels = np.concatenate([rng.permutation(np.arange(20) % 10), [-1] * 3, rng.permutation(10)])
    columns_first = images.swapaxes(2, 3)
    folder = raw / "stl10_binary"
    put(folder / "train_X.bin", columns_first[:20].tobytes())
    put(folder / "unlabeled_X.bin", columns_first[20:23].tobytes())
    put(folder / "test_X.bin", columns_first[23:].tobytes())
    put(folder / "train_y.bin", (labels[:20] + 1).astype(np.uint8).tobytes())
    put(folder / "test_y.bin", (labels[23:] + 1).astype(np.uint8).tobytes())
    return folder, images, labels


# --- Tiny ImageNet ----------------------------------------------------------------------------------------------------

WNIDS = ["n02124075", "n04067472", "n04540053"]  # not sorted by chance or otherwise in the official file


def tiny_source() -> Source:
    return small(
        SOURCES["tiny_imagenet"], {"pretrain": (6, None), "train": (6, 2), "test": (3, 1)}, num_classes=len(WNIDS)
    )


def write_tiny(raw: Path) -> Path:
    """Two training images and one for validation of every class; returns the folder."""
    folder = raw / "tiny-imagenet-200"
    order = [WNIDS[1], WNIDS[0], WNIDS[2]]
    put(folder / "wnids.txt", "\n".join(order) + "\n")
    for label, wnid in enumerate(order):
        put(folder / f"train/{wnid}/{wnid}_boxes.txt", "boxes")
        for number in range(2):
            grey = label == 2 and number == 1
            content = jpeg(90, mode="L") if grey else jpeg(80 * label + 20 * number)
            put(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", content)
    lines = [f"val_{i}.JPEG\t{order[2 - i]}\t0\t0\t62\t62\n" for i in range(3)]
    put(folder / "val/val_annotations.txt", "".join(lines))
    for i in range(3):
        put(folder / f"val/images/val_{i}.JPEG", jpeg(50 * i))
    return folder


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def imagenet_source(name: str = "imagenet", classes: int = 3) -> Source:
    counts = {"pretrain": (2 * classes, None), "train": (2 * classes, None), "test": (classes, 1)}
    return small(SOURCES[name], counts, num_classes=classes)


def write_imagenet(raw: Path, wnids: list[str], flat_val: bool = False) -> None:
    """Two training images and one for validation of every class; `flat_val` puts the latter into one folder."""
    rows = ["ImageId,PredictionString"]
    for index, wnid in enumerate(wnids):
        for number in range(2):
            put(raw / f"train/{wnid}/{wnid}_{number}.JPEG", bytes(10 + number))
        name = f"ILSVRC2012_val_{len(wnids) - index:08d}"
        put(raw / "val" / ("" if flat_val else wnid) / f"{name}.JPEG", bytes(5))
        rows.append(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8")
    if flat_val:
        put(raw / "LOC_val_solution.csv", "\n".join(rows) + "\n")
