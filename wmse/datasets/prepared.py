"""The prepared form of a benchmark: `.npy` arrays (or lists of JPEG files) and a manifest that is written last.

    <data root>/<benchmark>/prepared/manifest.json
                                     train-images.npy    uint8 (n, 3, H, W)
                                     train-labels.npy    int64 (n,), -1 = unlabeled
                                     train-paths.txt     instead of the images of a streamed benchmark,
                                     train-pack.pack     and if they are packed, the JPEG files themselves (pack.py)
                                     train-index.npy     int64 (n + 1,), where they begin and end there
                                     folder-DIGEST.json  of a folder of one's own: the file of every row

A split is a range of rows of such an array, so splits may share one (pretrain and train).

The digest of an array benchmark covers the pixels and labels of all its arrays. The digest of a streamed benchmark
covers class, name and size in bytes of every JPEG file, not the pixels: hashing 150 GB would take longer than many a
training epoch. Neither depends on paths, dates or on the raw form that the files came in.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wmse.datasets.pack import Pack, write_pack
from wmse.datasets.source import UNLABELED, Chunk, Listing, Rows, Source, check_counts
from wmse.datasets.splits import ImageFile
from wmse.errors import DataError, explain
from wmse.files import atomic_path, blocks_digest, file_digest, write_json, write_text
from wmse.progress import progress_bar, tracked

FORMAT = 1
MANIFEST = "manifest.json"
_HASH_ROWS = 4096  # Arrays are hashed again in blocks of this many rows.


class PreparedSplit:
    """A `Split` of a prepared benchmark; its files are opened on first use."""

    def __init__(self, folder: Path, data_root: Path, name: str, entry: Mapping[str, Any]) -> None:
        self.name = name
        self._folder = folder
        self._data_root = data_root
        self._entry = entry
        self._rows = slice(entry["start"], entry["stop"])

    def __len__(self) -> int:
        return self._entry["count"]

    @cached_property
    def images(self) -> np.ndarray:
        """Read-only memory map, uint8, (n, 3, H, W); DataError for a streamed benchmark."""
        if "images" not in self._entry:
            raise DataError(f"{self._folder}: split {self.name!r} is a list of JPEG files: use `paths`, not `images`")
        return self._array("images", np.uint8)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, int64, (n,); -1 marks an unlabeled image."""
        labels = np.array(self._array("labels", np.int64))
        _check_digest(self._folder / self._entry["labels"], self._entry["labels_sha256"])  # small enough, always
        return labels

    @property
    def files(self) -> Sequence[ImageFile]:
        """The JPEG files, where they lie or packed; DataError for a benchmark that is stored as an array."""
        if "pack" not in self._entry:
            return self.paths
        return Pack(self._folder / self._entry["pack"], self._ends(), self._names())

    @cached_property
    def paths(self) -> list[Path]:
        """Absolute paths of the JPEG files; DataError for a benchmark that is stored as an array."""
        if "paths" not in self._entry:
            raise DataError(f"{self._folder}: split {self.name!r} is stored as an array: use `images`, not `paths`")
        raw = (self._data_root / self._entry["raw"]).resolve()
        return [raw / name for name in self._names()]

    def _names(self) -> list[str]:
        """The files of the split, relative to the raw folder."""
        file = self._folder / self._entry["paths"]
        try:
            names = file.read_text(encoding="utf-8").splitlines()[self._rows]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a list of files ({error}): {_again(self._folder)}") from None
        if len(names) != len(self):
            raise DataError(f"{file}: {len(names):,} lines for {len(self):,} images: {_again(self._folder)}")
        return names

    def _ends(self) -> np.ndarray:
        """Where the files of the split begin and end in the packed file, (n + 1,) int64."""
        path = self._folder / self._entry["index"]
        _check_digest(path, self._entry["index_sha256"])  # small enough, always
        return np.array(_open_array(path)[self._rows.start : self._rows.stop + 1])

    def _array(self, kind: str, dtype: type) -> np.ndarray:
        """The rows of a stored array, which must be of the type and shape that the manifest states."""
        path = self._folder / self._entry[kind]
        shape = tuple(self._entry["shape"]) if kind == "images" else (len(self),)
        rows = _open_array(path)[self._rows]
        if rows.dtype != dtype or rows.shape != shape:
            found, expected = f"{rows.dtype} {rows.shape}", f"{np.dtype(dtype)} {shape}"
            raise DataError(f"{path}: {found}, expected {expected}: {_again(self._folder)}")
        return rows


class Prepared:
    """A prepared benchmark: `prepared["train"]` is a `PreparedSplit`, `manifest` the content of manifest.json."""

    def __init__(self, folder: Path, data_root: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.benchmark: str = manifest["benchmark"]
        self.digest: str = manifest["digest"]
        self._splits = {
            name: PreparedSplit(folder, data_root, name, entry) for name, entry in manifest["splits"].items()
        }

    def __getitem__(self, name: str) -> PreparedSplit:
        if name not in self._splits:
            raise DataError(f"{self.benchmark} has no split {name!r}; it has {', '.join(self._splits)}")
        return self._splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    @property
    def packed(self) -> bool:
        """Whether the JPEG files of a streamed benchmark are packed."""
        return all("pack" in entry for entry in self.manifest["splits"].values())

    def verify(self) -> None:
        """Hash all stored arrays again; DataError naming the file that is not what the manifest says."""
        entries = self.manifest["splits"].values()
        kinds = ("images", "labels", "paths", "index", "pack")
        stored = {entry[kind]: entry[f"{kind}_sha256"] for entry in entries for kind in kinds if kind in entry}
        for name, expected in stored.items():
            _check_digest(self.folder / name, expected)


def prepared_folder(source: Source, data_root: Path) -> Path:
    """Where the prepared form of `source` lies."""
    return Path(data_root) / source.name / "prepared"


def load_prepared(source: Source, data_root: Path, *, verify: bool = False) -> Prepared:
    """Open the prepared form; with `verify` its arrays are hashed again.

    Raises DataError if it is absent, incomplete, of another format, or (with `verify`) changed.
    """
    folder = prepared_folder(source, data_root)
    command = f"run `wmse prepare {source.name}`"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: {source.name} is not prepared: {command}") from None
    except PermissionError as error:
        raise DataError(explain(error)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / MANIFEST}: unreadable ({error}): {command}") from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("benchmark")) != (FORMAT, source.name):
        raise DataError(f"{folder / MANIFEST}: not format {FORMAT} of {source.name}: {command}")
    _check_manifest(source, folder, manifest, command)
    prepared = Prepared(folder, Path(data_root), manifest)
    if verify:
        prepared.verify()
    return prepared


def _check_manifest(source: Source, folder: Path, manifest: Mapping[str, Any], command: str) -> None:
    """DataError unless the manifest describes the splits of `source` and its files are there, as large as it says."""
    if manifest.get("own", {}) != source.own:
        raise DataError(f"{folder / MANIFEST}: not what the folder of {source.name} holds now: {command}")
    try:
        if manifest["splits"].keys() != source.splits.keys():
            raise DataError(f"{folder / MANIFEST}: its splits are not those of {source.name}: {command}")
        for name, rows in source.splits.items():
            entry = manifest["splits"][name]
            expected = _expected_entry(source, rows, entry)
            texts = [manifest["digest"], *(entry[f"{kind}_sha256"] for kind in _kinds(source, entry))]
            texts += [entry["raw"]] if source.streamed else []
            for key, value in expected.items():
                if json.dumps(entry[key]) != json.dumps(value):  # as text, because 1 == 1.0 == True
                    raise DataError(f"{folder / MANIFEST}: '{key}' of split '{name}' must be {value}: {command}")
            if not all(isinstance(text, str) and "\0" not in text for text in texts):
                raise DataError(f"{folder / MANIFEST}: digests and folders must be text: {command}")
            _check_sizes(folder, {entry[kind]: entry[f"{kind}_bytes"] for kind in _kinds(source, entry)}, command)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: incomplete ({error!r}): {command}") from error


_SUFFIXES = {"images": ".npy", "labels": ".npy", "paths": ".txt", "index": ".npy", "pack": ".pack"}


def _kinds(source: Source, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of files that a split must have."""
    if not source.streamed:
        return "images", "labels"
    return ("paths", "labels", "index", "pack") if "pack" in entry else ("paths", "labels")


def _expected_entry(source: Source, rows: Rows, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest must say about a split."""
    count = rows.stop - rows.start
    names = {kind: f"{rows.array}-{kind}{_SUFFIXES[kind]}" for kind in _kinds(source, entry)}
    shape = [count] if source.streamed else [count, 3, source.image_size, source.image_size]
    return {"start": rows.start, "stop": rows.stop, "count": count, "shape": shape, **names}


def _check_sizes(folder: Path, sizes: Mapping[str, int], command: str) -> None:
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing: {command}")
        if path.stat().st_size != size:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes, expected {size}: {command}")


def write_arrays(
    source: Source,
    data_root: Path,
    chunks: Iterable[Chunk],
    raw_files: Callable[[], list[dict[str, Any]]],
    origin: str,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Store the chunks of a parser; memory use stays at two chunks plus the labels.

    `raw_files` is called after the last chunk; it describes the files that were read, or raises DataError if they are
    not the published ones. `origin` is shown in messages, `advance` is called with the number of rows of every stored
    chunk. Raises DataError if the numbers of images are not the published ones.
    """
    folder = _fresh_folder(source, data_root)
    side = source.image_size
    _check_space(source, folder, sum(source.rows(name) for name in source.arrays()) * 3 * side * side)
    stored: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        writers: dict[str, _ArrayWriter] = {}
        for name in source.arrays():
            path = stack.enter_context(atomic_path(folder / f"{name}-images.npy"))
            shape = (source.rows(name), 3, side, side)
            writers[name] = _ArrayWriter(path, shape, f"{origin}: {source.name} {name}", pool)
        for name, images, labels in chunks:
            writers[name].append(images, labels)
            advance(len(images))
        checked = raw_files()
        for name, writer in writers.items():
            check_counts(source, name, writer.all_labels(), origin)
            stored[name] = {"shape": list(writer.shape), "images_sha256": writer.close()}
    for name, writer in writers.items():
        stored[name] |= {"images": f"{name}-images.npy", **_store_labels(folder, name, writer.all_labels())}
        stored[name]["images_bytes"] = (folder / stored[name]["images"]).stat().st_size
    _write_manifest(source, folder, stored, checked, key="images_sha256")


def write_listing(source: Source, data_root: Path, listing: Listing, pack: bool = False) -> None:
    """Store the list of JPEG files of a streamed benchmark, and the files themselves if they are to be packed.

    The digest is the same either way. DataError if the counts are not the published ones.
    """
    folder = _fresh_folder(source, data_root)
    if pack:
        files = [path for name in source.arrays() for _, path in listing.images[name]]
        _check_space(source, folder, sum(path.stat().st_size for path in files))
    label_of = {class_name: label for label, class_name in enumerate(listing.classes)} | {"": UNLABELED}
    stored: dict[str, dict[str, Any]] = {}
    for name in source.arrays():
        images = listing.images[name]
        labels = np.array([label_of[class_name] for class_name, _ in images], np.int64)
        check_counts(source, name, labels, str(listing.raw))
        # Whatever the folder layout, these lines identify the images.
        keys = "\n".join(
            f"{class_name}/{path.name} {listing.content.get(path) or path.stat().st_size}"
            for class_name, path in tracked(images, "files", f"{source.name}: listing {name}")
        )
        target = folder / f"{name}-paths.txt"
        write_text(target, "".join(f"{path.relative_to(listing.raw).as_posix()}\n" for _, path in images))
        stored[name] = {
            "paths": target.name,
            "raw": os.path.relpath(listing.raw, data_root),
            "shape": [len(images)],
            "paths_sha256": _content_sha256(target),
            "paths_bytes": target.stat().st_size,
            "files_sha256": hashlib.sha256(keys.encode()).hexdigest(),
            **_store_labels(folder, name, labels),
            **(_store_pack(folder, name, [path for _, path in images]) if pack else {}),
        }
    _write_manifest(source, folder, stored, [], key="files_sha256")


class _ArrayWriter:
    """Fills one `.npy` file from front to back; `pool` hashes and writes, beside whatever makes the next block.

    With plain writes: through a memory map, a disk that is full would kill the process (SIGBUS).
    """

    def __init__(self, path: Path, shape: tuple[int, ...], what: str, pool: ThreadPoolExecutor) -> None:
        self.shape = shape
        self._what = what
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close())
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._pool = pool
        self._hash = hashlib.sha256()
        self._storing = pool.submit(self._store, b"")
        self._filled = 0
        self._labels: list[np.ndarray] = []

    def append(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Store uint8 images (n, 3, H, W) and their labels (n,)."""
        stop = self._filled + len(images)
        if stop > self.shape[0]:
            raise DataError(f"{self._what} has at least {stop:,} images, expected {self.shape[0]:,}")
        if images.dtype != np.uint8 or images.shape[1:] != self.shape[1:] or len(images) != len(labels):
            raise DataError(f"{self._what}: images of shape {images.shape}, expected (n, {self.shape[1:]})")
        block = np.ascontiguousarray(images)
        self._storing.result()  # blocks that wait would fill the memory
        self._storing = self._pool.submit(self._store, block)
        self._labels.append(labels.astype(np.int64))
        self._filled = stop

    def _store(self, block: np.ndarray | bytes) -> None:
        self._hash.update(block)
        self._file.write(block)

    def all_labels(self) -> np.ndarray:
        """Labels stored so far, int64, (n,)."""
        return np.concatenate(self._labels) if self._labels else np.empty(0, np.int64)

    def close(self) -> str:
        """Close the file and return the sha256 of the pixels."""
        self._storing.result()
        self._file.close()
        return self._hash.hexdigest()


def _fresh_folder(source: Source, data_root: Path) -> Path:
    """The prepared folder without a manifest, and without the files of an earlier try, whose space is needed."""
    folder = prepared_folder(source, data_root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in (
        ".*.tmp",
        "*-images.npy",
        "*-labels.npy",
        "*-paths.txt",
        "*-index.npy",
        "*-pack.pack",
        "folder-*.json",
    ):  # the caller holds the lock
        for leftover in folder.glob(pattern):
            leftover.unlink()
    return folder


def _check_space(source: Source, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:  # say so now, not after a download and minutes of reading
        sizes = f"needs {needed / 1e9:.1f} GB, only {free / 1e9:.1f} GB are free"
        raise DataError(f"{folder}: {source.name} {sizes}: free some, or choose another folder (--data-root)")


def _store_labels(folder: Path, name: str, labels: np.ndarray) -> dict[str, Any]:
    target = folder / f"{name}-labels.npy"
    _save(target, labels)
    return {
        "labels": target.name,
        "labels_sha256": hashlib.sha256(np.ascontiguousarray(labels, "<i8")).hexdigest(),
        "labels_bytes": target.stat().st_size,
    }


def _save(target: Path, array: np.ndarray) -> None:
    content = io.BytesIO()  # numpy's own write to a file does not say that the disk is full
    np.save(content, array)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content.getbuffer())


def _store_pack(folder: Path, name: str, files: list[Path]) -> dict[str, Any]:
    pack, index = folder / f"{name}-pack.pack", folder / f"{name}-index.npy"
    with progress_bar(len(files), "files", f"packing {name}") as bar:
        ends = write_pack(pack, files, bar.update)
    _save(index, ends)
    stored: dict[str, Any] = {}
    for kind, path in (("pack", pack), ("index", index)):
        stored |= {kind: path.name, f"{kind}_sha256": _content_sha256(path), f"{kind}_bytes": path.stat().st_size}
    return stored


def _write_manifest(
    source: Source, folder: Path, stored: dict[str, dict[str, Any]], raw_files: list[dict[str, Any]], key: str
) -> None:
    splits = {}
    for name, rows in source.splits.items():
        entry = stored[rows.array]
        count = rows.stop - rows.start
        shape = [count, *entry["shape"][1:]]
        splits[name] = {**entry, "shape": shape, "start": rows.start, "stop": rows.stop, "count": count}
    content = {
        "arrays": {name: [entry["shape"], entry[key], entry["labels_sha256"]] for name, entry in stored.items()},
        "splits": {name: [rows.array, rows.start, rows.stop] for name, rows in source.splits.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest = {
        "format": FORMAT,
        "benchmark": source.name,
        "digest": f"sha256:{digest}",
        "sources": raw_files,
        "splits": splits,
        **({"own": source.own} if source.own else {}),
    }
    write_json(folder / MANIFEST, manifest)


def _check_digest(path: Path, expected: str) -> None:
    found = _content_sha256(path)
    if found != expected:
        raise DataError(f"{path}: sha256 of the content is {found}, expected {expected}: {_again(path.parent)}")


def _content_sha256(path: Path) -> str:
    """sha256 of a text file, or of the values of an array (its header left out, as NumPy versions may differ in it)."""
    if path.suffix != ".npy":
        return file_digest(path)
    array = _open_array(path)
    return blocks_digest(np.ascontiguousarray(array[i : i + _HASH_ROWS]) for i in range(0, len(array), _HASH_ROWS))


def _open_array(path: Path) -> np.ndarray:
    """A read-only memory map of a `.npy` file: whatever its header says, no more memory than the file has bytes."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except PermissionError as error:
        raise DataError(explain(error)) from None
    except Exception as error:  # a damaged header can raise many kinds
        raise DataError(f"{path}: not a readable array ({error}): {_again(path.parent)}") from None


def _again(folder: Path) -> str:
    return f"delete {folder} and run `wmse prepare {folder.parent.name}`"
