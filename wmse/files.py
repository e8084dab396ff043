"""Atomic writes and digests: no reader sees half a file, or takes a changed one for what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed over `target`.

    On any error the temporary file is removed and `target` keeps its old content. An OSError names `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        durable_rename(temporary, target)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a failed write (disk full) does not say of which file
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def durable_rename(source: Path, target: Path) -> None:
    """Rename a complete file over `target` in its folder: a power cut leaves the old content or the new one.

    A folder, whose files are on disk already, takes the place of none or of an empty one; OSError otherwise.
    """
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)  # the rename itself must survive as well


def flush_to_disk(path: Path) -> None:
    """Make a file's content, or a folder's list of files, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(target: Path) -> None:
    """Remove the temporary files that killed writers of `target` left; its name may be a pattern.

    Only whoever holds the folder's lock may call this: the files of a writer at work look the same.
    """
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` atomically as UTF-8.

    File names may hold bytes that are no UTF-8; Python reads them as lone surrogates, which are written as an escape.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, content: Any) -> None:
    """Write `content` atomically as indented JSON with a final newline."""
    write_text(target, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON with a final newline."""
    return json.dumps(content, indent=2) + "\n"


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 in hexadecimal of a JSON object without its key "sha256", however it is indented or ordered."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_sealed_json(target: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, `sealed`."""
    write_json(target, sealed(content))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own digest as the key "sha256"."""
    return {**content, "sha256": content_digest(content)}


# Hears how many bytes were hashed, wherever in the code below that happens: see `hashing_seen_by`.
_seen: ContextVar[Callable[[int], object]] = ContextVar("_seen", default=lambda count: None)
_BLOCK = 1 << 20  # Bytes that are hashed between two calls.


@contextlib.contextmanager
def hashing_seen_by(advance: Callable[[int], object]) -> Iterator[None]:
    """Within, `advance` is called with the number of bytes of every block that this thread has hashed."""
    token = _seen.set(advance)
    try:
        yield
    finally:
        _seen.reset(token)


def blocks_digest(blocks: Iterable[Any], algorithm: str = "sha256") -> str:
    """Hexadecimal digest of blocks of bytes, such as arrays, one after the other."""
    digest, seen = hashlib.new(algorithm), _seen.get()
    for block in blocks:
        digest.update(block)
        seen(memoryview(block).nbytes)
    return digest.hexdigest()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        return blocks_digest((block[:count] for count in iter(lambda: file.readinto(block), 0)), algorithm)


def digests(folder: Path, *names: str) -> dict[str, str]:
    """The digest "sha256:<hex>" of every named file in `folder`, as the JSON files of a run list them."""
    return {name: f"sha256:{file_digest(folder / name)}" for name in names}
