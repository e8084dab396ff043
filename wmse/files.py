"""Atomic writes, digests and locks: no reader ever sees half a file, or takes a changed one for what was written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from wmse.errors import WmseError


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
    """Rename a complete file over `target` in its folder: a power cut leaves the old content or the new one."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive as well
    finally:
        os.close(directory)


def remove_temporaries(target: Path) -> None:
    """Remove what killed writers of `target` (its name may be a pattern) left; for the holder of the folder's lock."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` atomically; what is no character (half a pair, of a name that is no text) becomes its number."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, content: Any) -> None:
    """Write `content` atomically as indented JSON with a final newline."""
    write_text(target, json.dumps(content, indent=2) + "\n")


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 in hexadecimal of a JSON object without its key "sha256", however it is indented or ordered."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_sealed_json(target: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with its own digest as the key "sha256"."""
    write_json(target, {**content, "sha256": content_digest(content)})


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digests(folder: Path, *names: str) -> dict[str, str]:
    """`files` of a JSON file: for every name in `folder` "sha256:<hex>"."""
    return {name: f"sha256:{file_digest(folder / name)}" for name in names}


def lock_holder(path: Path) -> str | None:
    """Who holds the lock on `path` now; None if nobody does, or nobody ever did."""
    try:
        with open(path, encoding="utf-8") as file:
            return None if _try_lock(file, fcntl.LOCK_SH) else _holder(file)
    except FileNotFoundError:
        return None


def take_lock(path: Path, holder: str, error: type[WmseError] = WmseError, wait: bool = False) -> IO[str]:
    """Take an advisory lock on `path` until the returned file is closed or the process ends, however it ends.

    With `wait`, block until it is free; otherwise raise `error` naming who holds it: what, process id and host.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (stays open on purpose)
    try:
        if not _try_lock(file):
            if not wait:
                raise error(f"{path} is locked by {_holder(file)}: wait for it to finish, or stop it first")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
            file.write(f"{holder} (pid {os.getpid()} on {socket.gethostname()})")
            file.flush()
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def exclusive_lock(path: Path, holder: str, error: type[WmseError] = WmseError, wait: bool = False) -> Iterator[None]:
    """`take_lock` for the length of a block."""
    file = take_lock(path, holder, error, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what a full disk did not take
            file.close()


def _try_lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
