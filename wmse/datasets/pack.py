"""JPEG files one after the other in a single file, for file systems that dislike a million small ones.

A packed file is the bytes of the files as they are, in the order of their list, and nothing else; an index says where
each of them ends. Reading one is a single `pread`, which threads may do at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmse.files import atomic_path
from wmse.read_ahead import ReadAhead

_READERS = 16  # Threads that wait for the disk while packing.
_AHEAD = 1 << 28  # The most bytes of files that wait to be written.


@dataclass(frozen=True)
class PackedFile:
    """A file in a packed file: `read_bytes` as of a path, and the name that it had."""

    pack: Pack
    row: int

    def __str__(self) -> str:
        return f"{self.pack.path}: {self.pack.names[self.row]}"

    def read_bytes(self) -> bytes:
        """Its content; OSError if the packed file has become shorter."""
        start, stop = self.pack.ends[self.row : self.row + 2].tolist()
        content = os.pread(self.pack.descriptor, stop - start, start)
        if len(content) != stop - start:
            raise OSError(0, f"ends after {len(content):,} of {stop - start:,} bytes")
        return content


class Pack(Sequence[PackedFile]):
    """The files in the packed file at `path`.

    Args:
        ends: (n + 1,) int64, where the first file begins and where each one ends, in bytes.
        names: the n files' names.
    """

    def __init__(self, path: Path, ends: np.ndarray, names: Sequence[str]) -> None:
        self.path, self.ends, self.names = path, ends, names
        self.descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> PackedFile:
        return PackedFile(self, range(len(self))[row])

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def write_pack(target: Path, files: Sequence[Path], advance: Callable[[int], None] = lambda files: None) -> np.ndarray:
    """Pack the files; `target` appears when all are in it.

    Returns where the first begins and each one ends, (n + 1,) int64. `advance` is called with 1 for every file.
    """
    ends = np.zeros(len(files) + 1, np.int64)
    with atomic_path(target) as temporary, open(temporary, "wb") as out:
        for row, content in enumerate(_contents(files)):
            out.write(content)
            ends[row + 1] = ends[row] + len(content)
            advance(1)
    return ends


def _contents(files: Sequence[Path]) -> Iterator[np.ndarray]:
    def read(path: Path) -> np.ndarray:
        return np.frombuffer(path.read_bytes(), np.uint8)

    with ThreadPoolExecutor(_READERS) as pool, closing(ReadAhead(pool, _READERS, read, files, _AHEAD)) as ahead:
        for path in files:
            yield ahead.take(path)
