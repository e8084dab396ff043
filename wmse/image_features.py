"""Features of a folder of images: streamed, so that memory does not grow with the folder, and resumable.

    OUT.part/head.json       which encoder, and how it was computed; another one begins anew
             rows.jsonl      [name, bytes, date in ns] of every file whose features are there, one a line
             features.f32    their features, row by row

OUT itself is written when all are there. A file that was changed since, or that could not be read, is computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmse.datasets.decode import RESTORE, decode_any
from wmse.encoder import Encoder, Preprocessing
from wmse.errors import ConfigError, DataError, TrainingError
from wmse.features import NOT_FINITE
from wmse.files import atomic_path, write_json, write_text
from wmse.image_folders import NAMED
from wmse.images import AHEAD, decode
from wmse.pretrained import Pretrained
from wmse.progress import progress_bar
from wmse.read_ahead import ReadAhead
from wmse.runtime import Runtime

BATCH = 100  # Images of one forward pass; after each, what was computed is on disk.
ROWS = 4096  # Rows that are copied at once into the final file.
FORMATS = (".npz", ".parquet")


class BrokenImages(DataError):
    """Some images cannot be read; `files` are their names with the reason, the features of all others are kept."""

    def __init__(self, message: str, files: dict[str, str]) -> None:
        super().__init__(message)
        self.files = files


@dataclass(frozen=True)
class _Unreadable:
    """In the place of an image's pixels."""

    reason: str
    nbytes: int = 0


def find_images(folder: Path) -> list[str]:
    """The image files below a folder by the ends of their names, sorted, relative to it; hidden ones are left out.

    Raises DataError: no such folder, or none in it.
    """
    from PIL import Image

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: name one with images")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    found = sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))
    if not found:
        raise DataError(f"{folder}: holds no image (by the ends of the files' names, e.g. .jpg and .png): name another")
    return found


@torch.no_grad()
def stream_features(
    encoder: Encoder, folder: Path, names: Sequence[str], runtime: Runtime, broken: dict[str, str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and float32 features (m, f) of the images of a folder, in batches and in order, as threads decode them.

    Files that cannot be read are left out, and added to `broken` with the reason. Raises TrainingError if a feature is
    not finite.
    """
    assert encoder.preprocessing is not None
    work = _Work(folder, encoder.preprocessing)
    network = runtime.place(encoder).eval()
    threads = max(torch.get_num_threads(), 1)
    with ThreadPoolExecutor(threads) as pool, closing(ReadAhead(pool, threads, work, names, AHEAD)) as ahead:
        for start in range(0, len(names), BATCH):
            results = {name: ahead.take(name) for name in names[start : start + BATCH]}
            images = {name: result for name, result in results.items() if isinstance(result, Tensor)}
            broken.update({name: r.reason for name, r in results.items() if isinstance(r, _Unreadable)})
            if not images:
                continue
            with runtime.autocast():
                batch = torch.cat(list(images.values())).to(runtime.device, non_blocking=True)
                features = network(runtime.batch(batch)).float().cpu()
            if not features.isfinite().all():
                raise TrainingError(NOT_FINITE)
            yield list(images), features.numpy()


@dataclass(frozen=True)
class _Work:
    """What a thread does for an image: its pixels (1, 3, size, size), or why there are none."""

    folder: Path
    preprocessing: Preprocessing

    def __call__(self, name: str) -> Tensor | _Unreadable:
        try:
            return self.preprocessing.one(decode(self.folder / name, decode_any))
        except (DataError, ValueError) as error:
            return _Unreadable(str(error).removesuffix(RESTORE))


def folder_features(
    encoder: Encoder, folder: str | Path, runtime: Runtime | None = None
) -> tuple[list[str], np.ndarray]:
    """The features of all images below a folder, held in memory: file names and (n, f) float32, not normalised.

    Args:
        encoder: as of `load_encoder`.
        runtime: where to compute; the default is float32 on the CPU.

    Raises:
        BrokenImages: naming every file that cannot be read.
    """
    folder, broken = Path(folder), {}
    runtime = runtime or Runtime(torch.device("cpu"), channels_last=False)
    parts = list(stream_features(encoder, folder, find_images(folder), runtime, broken))
    if broken:
        raise BrokenImages(_broken_message(broken, "remove or repair them"), broken)
    return [name for names, _ in parts for name in names], np.concatenate([features for _, features in parts])


def _broken_message(broken: dict[str, str], advice: str) -> str:
    lines = [f"  {reason}" for reason in list(broken.values())[:NAMED]]
    more = [f"  and {len(broken) - NAMED:,} more"] if len(broken) > NAMED else []
    count = f"{len(broken):,} image{'s' if len(broken) > 1 else ''} cannot be read"
    return "\n".join([f"{count}: {advice}", *lines, *more])


# --- to a file --------------------------------------------------------------------------------------------------------


def write_folder_features(
    run: Pretrained,
    folder: Path,
    out: Path,
    runtime: Runtime,
    *,
    skip_broken: bool = False,
    log: Callable[[str], None] = print,
) -> int:
    """Write the features of all images below `folder` to `out`, .npz or .parquet; returns the number of rows.

    An .npz file holds `files` (n,) text, relative to the folder, `features` (n, f) float32, and `run` and `encoder`,
    the run's name and the digest of its encoder. A Parquet file has the columns `file` and `features`, and these two
    as metadata. What an interrupted call has computed is taken over by the next one.

    Raises:
        BrokenImages: some files cannot be read and `skip_broken` is not set; all are named, and no `out` is written.
        DataError, ConfigError, TrainingError: no images; an unknown format, or pyarrow is missing; features not finite.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f"{out}: the name must end in {' or '.join(FORMATS)}")
    if out.suffix == ".parquet" and not util.find_spec("pyarrow"):
        raise ConfigError(f"{out}: Parquet needs pyarrow: `pip install pyarrow`, or take .npz")
    names = find_images(folder)
    head = {
        "run": run.spec.run,
        "encoder": run.digest,
        "precision": runtime.precision,
        "device": runtime.device.type,
        "features": run.encoder.features,
    }
    broken: dict[str, str] = {}
    with closing(_Part(out.with_name(f"{out.name}.part"), head)) as part:
        states = {name: _state(folder / name) for name in names}
        todo = [name for name in names if part.states.get(name) != states[name]]
        if len(todo) < len(names):
            log(f"{out}: going on; the features of {len(names) - len(todo):,} of {len(names):,} images are there")
        else:
            log(f"{folder}: {len(names):,} images by their names")
        with progress_bar(len(names), "image", folder.name, start=len(names) - len(todo)) as bar:
            for found, features in stream_features(run.encoder, folder, todo, runtime, broken):
                part.add({name: states[name] for name in found}, features)
                bar.update(len(found))
        if broken:
            listed = part.folder / "broken.txt"
            write_text(listed, "".join(f"{reason}\n" for reason in broken.values()))
            if not skip_broken:
                advice = f"remove or repair them, or leave them out with --skip-broken; {listed} lists them"
                raise BrokenImages(_broken_message(broken, f"{advice}. Nothing else is computed again"), broken)
            log(
                f"left out: {len(broken):,} images, which cannot be read: {', '.join([*broken][:NAMED])}"
                f"{' and more' if len(broken) > NAMED else ''}"
            )
        kept = [name for name in names if name not in broken]
        if not kept:
            raise DataError(f"{folder}: none of its images can be read: {part.folder / 'broken.txt'} says why")
        write = _write_npz if out.suffix == ".npz" else _write_parquet
        write(out, kept, part.features(), np.array([part.rows[name] for name in kept]), head)
    shutil.rmtree(part.folder)
    return len(kept)


def _state(file: Path) -> list[int]:
    """What tells that a file is still the same: bytes and date; zeros if it is gone."""
    try:
        status = file.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


class _Part:
    """What is computed so far. A row counts once its line in rows.jsonl is whole; its features come first."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.folder, self.width = folder, head["features"]
        self.states: dict[str, list[int]] = {}
        self.rows: dict[str, int] = {}
        if _content(folder / "head.json") != head:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / "head.json", head)
        lines, size = self._lines()
        self.count = len(lines)
        for row, (name, *state) in enumerate(lines):
            self.states[name], self.rows[name] = state, row
        self.index = open(folder / "rows.jsonl", "ab")  # noqa: SIM115 (`close` closes them)
        self.index.truncate(size)
        self.file = open(folder / "features.f32", "ab")  # noqa: SIM115
        self.file.truncate(self.count * self.width * 4)

    def _lines(self) -> tuple[list[list[Any]], int]:
        """The whole lines of rows.jsonl that have their features, and where they end."""
        lines, size = [], 0
        features = self.folder / "features.f32"
        room = features.stat().st_size // (self.width * 4) if features.exists() else 0
        with contextlib.suppress(OSError, ValueError), open(self.folder / "rows.jsonl", "rb") as index:
            for line in index:
                if not line.endswith(b"\n") or len(lines) == room:
                    break
                lines.append(json.loads(line))
                size += len(line)
        return lines, size

    def add(self, states: dict[str, list[int]], features: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(features).tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.index.write(b"".join(json.dumps([name, *state]).encode() + b"\n" for name, state in states.items()))
        self.index.flush()
        for name, state in states.items():
            self.states[name], self.rows[name] = state, self.count
            self.count += 1

    def features(self) -> np.ndarray:
        """(rows, f), mapped from the file."""
        return np.memmap(self.folder / "features.f32", np.float32, "r").reshape(-1, self.width)

    def close(self) -> None:
        self.index.close()
        self.file.close()


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _write_npz(out: Path, names: list[str], features: np.ndarray, rows: np.ndarray, head: dict[str, Any]) -> None:
    """By hand, because numpy.savez wants the features in memory."""
    small = {"files": np.array(names), "run": np.array(head["run"]), "encoder": np.array(head["encoder"])}
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), features.shape[1])}
            np.lib.format.write_array_header_2_0(entry, header)
            for start in range(0, len(rows), ROWS):
                entry.write(features[rows[start : start + ROWS]].tobytes())


def _write_parquet(out: Path, names: list[str], features: np.ndarray, rows: np.ndarray, head: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    width = features.shape[1]
    kinds = [("file", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), width))]
    schema = pyarrow.schema(kinds, {"run": head["run"], "encoder": head["encoder"]})
    with atomic_path(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(rows), ROWS):
            part = features[rows[start : start + ROWS]]
            values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), width)
            texts = [name.encode(errors="backslashreplace").decode() for name in names[start : start + ROWS]]
            writer.write_table(pyarrow.table([pyarrow.array(texts), values], schema))
