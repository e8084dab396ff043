"""Downloads that survive what public hosts do: stall, cut off, ignore ranges, answer with an error page.

Bytes go to `<name>.part`, which a later try continues and which gets its real name only once its checksum is right.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmse.datasets.source import Archive, Log
from wmse.errors import DataError
from wmse.files import file_digest

ATTEMPTS = 4  # tries in a row per address that bring nothing new
STALL_SECONDS = 30.0  # without a byte, after which a connection counts as dead
_BLOCK = 1 << 18
_PROGRESS = 1 << 20  # new bytes that make a failed try count as progress, so that it does not use up an attempt
_WAIT_LIMIT = 8.0
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # no other address helps


class DownloadError(DataError):
    """All addresses failed; the message has one line for each."""


class _Retry(Exception):
    """This try failed, the next may succeed."""


class _GiveUp(Exception):
    """This address will not deliver the file."""


def download(
    archive: Archive,
    target: Path,
    *,
    progress: bool | None = None,
    log: Log = print,
    sleep: Callable[[float], None] = time.sleep,
    stall: float = STALL_SECONDS,
) -> None:
    """Fetch `archive` to `target` from the first of its addresses that delivers it.

    `progress` shows a bar (None: on a terminal only); `stall` is in seconds. Raises DownloadError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in archive.urls:
        log(f"downloading {url}")
        try:
            _from_one_address(archive, url, target, progress, sleep, stall)
        except _GiveUp as failure:
            log(f"  failed: {failure}")
            failures.append(f"  {url}: {failure}")
        else:
            return
    raise DownloadError("\n".join(failures))


def progress_bar(total: int, unit: str, name: str, progress: bool | None, start: int = 0) -> Any:
    """A tqdm bar on standard error; it stays silent unless `progress` is true, or None on a terminal."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    scaled = unit == "B"
    return tqdm(
        total=total, initial=start, unit=unit, unit_scale=scaled, unit_divisor=1024, desc=name, disable=not shown
    )


def _from_one_address(
    archive: Archive, url: str, target: Path, progress: bool | None, sleep: Callable[[float], None], stall: float
) -> None:
    part = target.with_name(target.name + ".part")
    failed, furthest = 0, _size(part)
    inherited = furthest > 0  # by bytes of an earlier run or another address, which may be what is wrong
    while True:
        try:
            if _size(part) != archive.size:
                _fetch(archive, url, part, progress, stall)
            _accept(archive, part, target)
            return
        except _Retry as failure:
            failed = 1 if _size(part) >= furthest + _PROGRESS else failed + 1
            furthest = max(furthest, _size(part))
            if failed >= ATTEMPTS:
                raise _GiveUp(f"{failure} ({ATTEMPTS} tries)") from failure
            sleep(min(2.0 ** (failed - 1), _WAIT_LIMIT))
        except _GiveUp:
            if not inherited or part.exists():
                raise
            # The bytes were wrong and are gone, but not all came from this address: once more from the start.
            inherited, furthest = False, 0


def _fetch(archive: Archive, url: str, part: Path, progress: bool | None, stall: float) -> None:
    """Append to `part` what it lacks; on return it has the expected size."""
    have = _size(part)
    if have > archive.size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "wmse-repro", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=stall) as response:
            start = _start(response, archive, have)
            _receive(response, archive, part, start, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server's file is no longer than the part: start again
            part.unlink(missing_ok=True)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Retry(f"HTTP {error.code} {error.reason}") from error
        raise _GiveUp(f"HTTP {error.code} {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        if getattr(error, "errno", None) in _LOCAL_ERRORS:
            raise DataError(f"{part}: {error}") from error
        raise _Retry(f"{getattr(error, 'reason', None) or error or type(error).__name__}") from error
    if _size(part) < archive.size:
        raise _Retry(f"the connection ended after {_size(part):,} of {archive.size:,} bytes")


def _start(response: Any, archive: Archive, have: int) -> int:
    """Offset of the first byte that the server sends, after checking that it sends the right file."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _GiveUp("the server sent an HTML page instead of the file")
    length = response.headers.get("Content-Length")
    start, total = 0, int(length) if length and length.isdigit() else archive.size
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != have:
            raise _GiveUp("the server answered with another range than asked for")
        start = have
        total = archive.size if match[2] == "*" else int(match[2])
    if total != archive.size:
        raise _GiveUp(f"the server offers {total:,} bytes, expected {archive.size:,}")
    return start


def _receive(response: Any, archive: Archive, part: Path, start: int, progress: bool | None) -> None:
    with (
        open(part, "ab" if start else "wb") as file,
        progress_bar(archive.size, "B", archive.name, progress, start) as bar,
    ):
        received = start
        # read1 hands over what has arrived: after a stall, nothing received is lost
        while received <= archive.size and (block := response.read1(_BLOCK)):
            file.write(block)
            received += len(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if received > archive.size:
        part.unlink()
        raise _GiveUp(f"the server sent more than {archive.size:,} bytes")


def _accept(archive: Archive, part: Path, target: Path) -> None:
    algorithm, _, expected = archive.digest.partition(":")
    found = file_digest(part, algorithm)
    if found != expected:
        part.unlink()
        raise _GiveUp(f"{archive.name} has the wrong {algorithm} {found}, expected {expected}")
    part.replace(target)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
