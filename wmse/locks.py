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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from wmse.errors import WmseError

# A batch system may start a job again while its predecessor is still writing its last checkpoint.
PREDECESSOR = 120.0  # Seconds.


def patience() -> float:
    """Seconds that a run waits for its own lock: in a Slurm job for the end of a predecessor, elsewhere none."""
    return PREDECESSOR if "SLURM_JOB_ID" in os.environ else 0.0


def lock_holder(path: Path) -> str | None:
    """Who holds the lock on `path` now; None if nobody does, or nobody ever did. Looking disturbs no one."""
    try:
        with open(path, encoding="utf-8") as file:
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
            return None if struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK else _name_in(file)
    except FileNotFoundError:
        return None


def take_lock(
    path: Path,
    holder: str,
    error: type[WmseError] = WmseError,
    *,
    wait: float = 0,
    say: Callable[[str], None] = print,
    shared: bool = False,
) -> IO[str]:
    """Take an advisory lock on `path` until the returned file is closed or the process ends, however it ends.

    Several may hold a `shared` lock, of which the last writes its name. While somebody else holds it, `say` gets one
    line that names who: what, process id and host. After `wait` seconds `error` is raised, which names them, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (stays open on purpose)
    try:
        lock = _whole_file(fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        deadline, said = time.monotonic() + wait, False
        while True:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise error(
                        f"{path} is locked by {_name_in(file)}: wait for it to finish, or stop it first"
                    ) from None
            if not said:
                say(f"{path}: waiting for {_name_in(file)}")
                said = True
            time.sleep(0.2)
        file.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
            file.write(f"{holder} (pid {os.getpid()} on {socket.gethostname()})")
            file.flush()
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def exclusive_lock(
    path: Path,
    holder: str,
    error: type[WmseError] = WmseError,
    wait: float = 0,
    say: Callable[[str], None] = print,
) -> Iterator[None]:
    """`take_lock` for the length of a block."""
    file = take_lock(path, holder, error, wait=wait, say=say)
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
