"""Locks of the kernel, which end with the process that holds them, however it ends: none is ever stale.

They are Linux's locks of open files, which can be looked at without taking them; the file holds the holder's name.
(The package filelock empties the file on every attempt, and cannot look.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from wmse.errors import WmseError


def lock_holder(path: Path) -> str | None:
    """Who holds the lock on `path` now; None if nobody does, or nobody ever did. Looking disturbs no one."""
    try:
        with open(path, encoding="utf-8") as file:
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
            return None if struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK else _name_in(file)
    except FileNotFoundError:
        return None


def take_lock(
    path: Path, holder: str, error: type[WmseError] = WmseError, *, wait: bool = False, shared: bool = False
) -> IO[str]:
    """Take an advisory lock on `path` until the returned file is closed or the process ends, however it ends.

    Several may hold a `shared` lock, of which the last writes its name. With `wait`, block until the lock is free;
    otherwise raise `error` naming who holds it: what, process id and host.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (stays open on purpose)
    try:
        lock = _whole_file(fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
        except BlockingIOError:
            raise error(f"{path} is locked by {_name_in(file)}: wait for it to finish, or stop it first") from None
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
    file = take_lock(path, holder, error, wait=wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what a full disk did not take
            file.close()


def _whole_file(kind: int) -> bytes:
    """C's `struct flock` for a lock of all bytes: kind, origin, start, length (0: to the end), and no process."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0)


def _name_in(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
