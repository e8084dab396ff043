"""Folders of one's own images as benchmarks: read once in full, described by a `Source`, prepared like the others.

`wmse.image_folders` says which files there are. Reading them all before anything is stored finds those that are broken,
the mean and standard deviation of the pixels, and images that are in the training and the test images alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wmse.config import DIGITS
from wmse.datasets.archives import RawFiles
from wmse.datasets.build import prepare_source
from wmse.datasets.decode import RESTORE, decode_any
from wmse.datasets.prepared import MANIFEST, Prepared, load_prepared
from wmse.datasets.source import UNLABELED, Archive, Chunk, Listing, Log, Rows, Source
from wmse.errors import DataError, explain
from wmse.files import write_json, write_text
from wmse.image_folders import FILES, NAMED, Entry, Survey
from wmse.progress import progress_bar, tracked
from wmse.read_ahead import ReadAhead

BROKEN = "broken-files.txt"  # In the folder of the data set: every file that cannot be read, with the reason.
THREADS = 16  # More would wait for each other: half of the decoding holds Python's lock.
LARGEST_FILE = 1 << 31  # Bytes.
AHEAD = 1 << 28  # Bytes of decoded images that wait to be stored.
THUMBNAIL = 16  # Pixels of the side of the grey image in which two images are compared.
ALIKE = 3.0  # Grey levels: images are alike if their thumbnails differ by less on average (root mean square).
MOST_PAIRS = 10**10  # Beyond so many pairs of a training and a test image, only equal files are looked for.


@dataclass(slots=True)
class Seen:
    """What reading an image gave: why it is broken ("" if not), or sums over its pixels; `nbytes` for `ReadAhead`."""

    problem: str = ""
    sha256: str = ""
    thumbnail: np.ndarray | None = None
    sums: tuple[int, ...] = ()
    nbytes: int = 0


# --- preparation ------------------------------------------------------------------------------------------------------


def prepare_folder(found: Survey, data_root: Path, *, pack: bool = False, log: Log = print) -> Prepared:
    """Bring a folder into its prepared form unless that is there and the folder is as it was.

    Raises DataError: broken images, all of them at once; every class or the training images are gone without them.
    """
    with suppress(DataError):
        prepared = load_prepared(own_source(found.name, data_root), data_root)
        listed = prepared.folder / f"folder-{found.digest[:DIGITS]}.json"
        if prepared.manifest["own"]["state"] == found.state and (prepared.packed or not pack) and listed.exists():
            return prepared
        if prepared.manifest["own"]["state"] != found.state:
            log(
                f"{found.name}: {found.wanted.folder} or its entry in the configuration has changed: preparing it again"
            )
    log(f"{found.name}: reading every one of {len(found.entries):,} images once")
    entries, seen = found.entries, _read_all(found)
    broken = [(entry.name, result.problem) for entry, result in zip(entries, seen, strict=True) if result.problem]
    if broken:
        _report_broken(found, broken, Path(data_root), log)
    whole = [(entry, result) for entry, result in zip(entries, seen, strict=True) if not result.problem]
    found_whole = Survey(found.name, found.wanted, tuple(entry for entry, _ in whole))
    if not found_whole.count("pretrain") or found_whole.classes != found.classes:
        raise DataError(
            f"{found.wanted.folder}: without the broken images a class, or all there was to train on, is gone"
        )
    _report_copies(found.name, whole, log)
    duplicates = find_duplicates(whole)
    _report_duplicates(found.name, duplicates, log)
    mean, std = _moments([result.sums for entry, result in whole if entry.split == "train"])
    own = {
        **_described(found_whole, mean, std),
        "digest": found.digest,
        "state": found.state,
        "broken": [name for name, _ in broken],
        "duplicates": {kind: len(pairs) for kind, pairs in duplicates.items()},
    }
    source = _source(found.name, own, found_whole.entries, {e.name: result.sha256 for e, result in whole})
    prepared = prepare_source(source, data_root, pack=pack, log=log)
    rows = {split: [e.name for e in found_whole.entries if e.split == split] for split in ("train", "test")}
    write_json(prepared.folder / f"folder-{found.digest[:DIGITS]}.json", rows)
    return prepared


def _described(found: Survey, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {
        "folder": asdict(found.wanted),
        "store": found.store,
        "classes": found.classes,
        "images": {split: found.count(split) for split in ("pretrain", "train", "test")},
        "mean": list(mean),
        "std": list(std),
    }


def planned_source(found: Survey) -> Source:
    """A folder that nobody has read yet: counts as listed, and what most images have as mean and standard deviation."""
    return _source(found.name, _described(found, (0.5,) * 3, (0.25,) * 3))


def own_source(name: str, data_root: Path) -> Source:
    """The folder `name` as it was prepared. DataError if it was not."""
    try:
        manifest = json.loads((Path(data_root) / name / "prepared" / MANIFEST).read_text(encoding="utf-8"))
        return _source(name, manifest["own"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{name}: neither a benchmark of this package nor prepared in {data_root}") from None


def own_sources(data_root: Path) -> dict[str, Source]:
    """Every folder that is prepared in `data_root`, by name."""
    found = {}
    for manifest in sorted(Path(data_root).glob(f"*/prepared/{MANIFEST}")):
        with suppress(DataError):
            found[manifest.parts[-3]] = own_source(manifest.parts[-3], data_root)
    return found


def _source(
    name: str, own: dict[str, Any], entries: Sequence[Entry] = (), content: dict[str, str] | None = None
) -> Source:
    """The benchmark that `own` describes; with `entries` it can be prepared."""
    images, folder, streamed = own["images"], own["folder"], own["store"] == FILES
    splits = {"pretrain": Rows("train", 0, images["pretrain"])}
    if images["train"] and images["test"]:
        splits |= {"train": Rows("train", 0, images["train"]), "test": Rows("test", 0, images["test"])}
    else:  # without test images their labels are of no use
        entries = [entry for entry in entries if entry.split == "train"]
    return Source(
        name=name,
        title=folder["title"],
        homepage="",
        licence=folder["licence"],
        num_classes=max(len(own["classes"]), 1),
        image_size=None if streamed else folder["image_size"],
        mean=tuple(own["mean"]),
        std=tuple(own["std"]),
        splits=splits,
        archives=(Archive(folder=folder["folder"], form="images"),),
        parse=None if streamed else partial(parse, entries),
        scan=partial(scan, entries, content or {}) if streamed else None,
        decode=decode_any,
        own=own,
    )


def parse(entries: Sequence[Entry], source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield the images cut to squares of the data set's size, one by one; their labels are positions in its classes."""
    label_of = {name: label for label, name in enumerate(source.own["classes"])} | {"": UNLABELED}
    size = source.image_size

    def read(entry: Entry) -> np.ndarray:
        return fitted(decode_any(files.read(entry.name, LARGEST_FILE), files.where(entry.name)), size)

    with ThreadPoolExecutor(THREADS) as pool, closing(ReadAhead(pool, THREADS, read, entries, AHEAD)) as ahead:
        for entry in entries:
            yield entry.split, ahead.take(entry).transpose(2, 0, 1)[None], np.array([label_of[entry.label]])


def scan(entries: Sequence[Entry], content: dict[str, str], source: Source, data_root: Path, log: Log) -> Listing:
    """List the images where they lie."""
    root = Path(source.own["folder"]["folder"])
    images: dict[str, list[tuple[str, Path]]] = {array: [] for array in source.arrays()}
    for entry in entries:
        images[entry.split].append((entry.label, root / entry.name))
    return Listing(root, source.own["classes"], images, {root / name: digest for name, digest in content.items()})


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest central square of an image (h, w, 3), resized to (size, size, 3) by Pillow (bicubic)."""
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels)
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


# --- reading everything once ------------------------------------------------------------------------------------------


def _read_all(found: Survey) -> list[Seen]:
    root, size = Path(found.wanted.folder), found.wanted.image_size
    read = partial(_read, root, size)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        closing(ReadAhead(pool, THREADS, read, found.entries, AHEAD)) as ahead,
        progress_bar(len(found.entries), "images", f"{found.name}: reading") as bar,
    ):
        results = []
        for entry in found.entries:
            results.append(ahead.take(entry))
            bar.update()
    return results


def _read(root: Path, size: int, entry: Entry) -> Seen:
    try:
        content = (root / entry.name).read_bytes()
        pixels = fitted(decode_any(content, entry.name), size)
    except OSError as error:
        return Seen(explain(error).removeprefix(f"{root / entry.name}: "))
    except DataError as error:
        return Seen(str(error).removeprefix(f"{entry.name}: ").removesuffix(RESTORE))
    wide = pixels.reshape(-1, 3).astype(np.int64)
    sums = (len(wide), *wide.sum(0).tolist(), *(wide * wide).sum(0).tolist())
    return Seen("", hashlib.sha256(content).hexdigest(), _thumbnail(pixels), sums)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """uint8 (THUMBNAIL ** 2,)."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(grey).reshape(-1)


def _moments(sums: Iterable[tuple[int, ...]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel on a scale from 0 to 1; from whole numbers, so the same everywhere."""
    count, *totals = (sum(column) for column in zip(*sums, strict=True))
    mean = [total / count / 255 for total in totals[:3]]
    variance = [square / count / 255**2 - m * m for square, m in zip(totals[3:], mean, strict=True)]
    # Images of one colour are not divided by zero, but by the step between two levels.
    return [round(m, 6) for m in mean], [round(max(v, 255**-2) ** 0.5, 6) for v in variance]


def _report_broken(found: Survey, broken: Sequence[tuple[str, str]], data_root: Path, log: Log) -> None:
    target = data_root / found.name / BROKEN
    write_text(target, "".join(f"{name}: {problem}\n" for name, problem in broken))
    count = f"{len(broken):,} of {len(found.entries):,} images"
    if found.wanted.leave_out_broken:
        log(f"{found.name}: left out: {count}, which cannot be read: {target} says why")
        return
    lines = [f"  {name}: {problem}" for name, problem in broken[:NAMED]]
    lines += [f"  and {len(broken) - NAMED:,} more"] if len(broken) > NAMED else []
    text = "\n".join([f"{found.wanted.folder}: {count} cannot be read", *lines])
    raise DataError(
        f"{text}\nAll of them are in {target}. Repair or remove them, or set `leave_out_broken: true` for "
        f"'{found.name}' under `datasets`"
    )


# --- duplicates -------------------------------------------------------------------------------------------------------


def find_duplicates(images: Sequence[tuple[Entry, Seen]]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of a training and a test image that are one file twice ("equal"), or look the same ("alike"), by name.

    Alike are images whose thumbnails differ by less than `ALIKE` levels: resized or saved again, not cut or turned.
    """
    sides = [[pair for pair in images if pair[0].split == split] for split in ("train", "test")]
    first = {result.sha256: entry.name for entry, result in reversed(sides[0])}
    equal = [(first[result.sha256], entry.name) for entry, result in sides[1] if result.sha256 in first]
    known = {name for _, name in equal}
    sides[1] = [pair for pair in sides[1] if pair[0].name not in known]
    alike: list[tuple[str, str]] = []
    if sides[0] and sides[1] and len(sides[0]) * len(sides[1]) <= MOST_PAIRS:
        train, test = (np.stack([result.thumbnail for _, result in side]) for side in sides)
        alike = [(sides[0][i][0].name, sides[1][j][0].name) for i, j in _near(train, test)]
    return {"equal": equal, "alike": alike}


def _near(train: np.ndarray, test: np.ndarray, block: int = 256) -> Iterator[tuple[int, int]]:
    """For every row of `test` that has one, the nearest row of `train` within `ALIKE`: (n, p) and (m, p) uint8.

    Their products are whole numbers below 2 ** 24, so that float32 is exact in whatever order they are added.
    """
    wide = train.astype(np.float32)
    squares = (wide * wide).sum(1, dtype=np.float64)
    for start in tracked(range(0, len(test), block), "block", "looking for duplicates"):
        rows = test[start : start + block].astype(np.float32)
        distances = squares + (rows * rows).sum(1, dtype=np.float64)[:, None] - 2.0 * (rows @ wide.T)
        nearest = distances.argmin(1)
        for j, i in enumerate(nearest.tolist()):
            if distances[j, i] < ALIKE**2 * test.shape[1]:
                yield i, start + j


def _report_copies(name: str, images: Sequence[tuple[Entry, Seen]], log: Log) -> None:
    """Images to train on that are the same file as another one of them."""
    first: dict[str, str] = {}
    pairs = [
        (first.setdefault(seen.sha256, entry.name), entry.name) for entry, seen in images if entry.split == "train"
    ]
    copies = [pair for pair in pairs if pair[0] != pair[1]]
    if copies:
        text = f"{len(copies):,} images to train on are copies of others, and count as often as they are there"
        log(f"{name}: note: {text}: {_some_pairs(copies)}")


def _some_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(pairs) - 5:,} more" if len(pairs) > 5 else ""
    return ", ".join(f"{first} and {second}" for first, second in pairs[:5]) + more


def _report_duplicates(name: str, duplicates: dict[str, list[tuple[str, str]]], log: Log) -> None:
    for kind, pairs in duplicates.items():
        if pairs:
            text = f"{len(pairs):,} test images are {kind} to a training image, which flatters the accuracies"
            log(f"{name}: warning: {text}: {_some_pairs(pairs)}")
