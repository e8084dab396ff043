"""Atomic writes, locks and digests: no reader ever sees half a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmse.errors import WmseError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed over `target`.

    On any error the temporary file is removed and `target` keeps its old content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        durable_rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def durable_rename(source: Path, target: Path) -> None:
    """Rename a complete file over `target` in its folder: a power cut leaves the old content or the new one."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive as well
    finally:
        os.close(directory)


def write_text(target: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write `content` atomically as indented JSON with a final newline."""
    write_text(target, json.dumps(content, indent=2) + "\n")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path, holder: str, error: type[WmseError] = WmseError, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock on `path`; the kernel releases it when the process ends, however it ends.

    With `wait`, block until it is free; otherwise raise `error` naming who holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise error(f"{path} is locked by {owner}: wait for it to finish, or stop it first") from None
        file.truncate(0)
        file.write(f"{holder} (pid {os.getpid()})")
        file.flush()
        yield
