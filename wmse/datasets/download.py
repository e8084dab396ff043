"""Downloads that survive what public hosts do: stall, trickle, cut off, ignore ranges, answer with an error page.

Bytes go to `<name>.part`, which a later try continues and which gets its real name only once its checksum is right.
By hand: requests would replace the redirect rules and the parsing of Retry-After alone, and pooch resumes nothing.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmse.datasets.source import Archive, Log
from wmse.errors import DataError
from wmse.files import durable_rename, file_digest
from wmse.progress import progress_bar

ATTEMPTS = 4  # An address is given up after this many tries in a row that bring nothing new.
STALL_SECONDS = 30.0  # A connection counts as dead after this many seconds without a byte, or with next to none.
_TRICKLE = 1 << 10  # The least bytes a second that a connection must deliver over `stall` seconds.
_BLOCK = 1 << 18  # The most bytes that are taken over at once.
_PROGRESS = 1 << 20  # A failed try that brought this many new bytes does not use up an attempt.
_WAIT_LIMIT = 8.0  # The waits between two tries double up to this many seconds.
_RETRY_AFTER_LIMIT = 60.0  # A server that asks to wait for more seconds than this is left for good.
# No other address helps against an error of the disk or of the path.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


class DownloadError(DataError):
    """All addresses failed; the message has one line for each."""


class _Retry(Exception):
    """This try failed, the next may succeed, but not before `wait` seconds if the server says so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _GiveUp(Exception):
    """This address will not deliver the file."""


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTP(S) only: urllib would go on to ftp."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if not url.startswith(("http://", "https://")):
            raise _GiveUp(f"redirected to {url[:200]!r}, which is not HTTP")
        return super().redirect_request(request, file, code, message, headers, url)


def download(
    archive: Archive,
    target: Path,
    *,
    log: Log = print,
    sleep: Callable[[float], None] = time.sleep,
    stall: float = STALL_SECONDS,
) -> None:
    """Fetch `archive` to `target` from the first of its addresses that delivers it; `stall` is in seconds.

    Raises DownloadError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in archive.urls:
        log(f"downloading {url}")
        try:
            _from_one_address(archive, url, target, sleep, stall)
        except _GiveUp as failure:
            log(f"  failed: {failure}")
            failures.append(f"  {url}: {failure}")
        else:
            return
    raise DownloadError("\n".join(failures))


def _from_one_address(archive: Archive, url: str, target: Path, sleep: Callable[[float], None], stall: float) -> None:
    part = target.with_name(target.name + ".part")
    failed = 0
    furthest = _size(part)
    pieced = furthest > 0  # by bytes of an earlier run, another address or an earlier answer: any of them may be wrong
    may_restart = True
    while True:
        try:
            if _size(part) != archive.size:
                _fetch(archive, url, part, stall)
            _accept(archive, part, target)
            return
        except _Retry as failure:
            failed = 1 if _size(part) >= furthest + _PROGRESS else failed + 1
            furthest = max(furthest, _size(part))
            pieced = pieced or furthest > 0
            if failed >= ATTEMPTS:
                raise _GiveUp(f"{failure} ({ATTEMPTS} tries)") from failure
            sleep(max(failure.wait, min(2.0 ** (failed - 1), _WAIT_LIMIT)))
        except _GiveUp:
            if part.exists() or not (pieced and may_restart):
                raise
            # The bytes were wrong and are gone, but they did not come in one answer: once more from the start.
            may_restart, furthest = False, 0


def _fetch(archive: Archive, url: str, part: Path, stall: float) -> None:
    """Append to `part` what it lacks; on return it has the expected size."""
    have = _size(part)
    if have > archive.size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "wmse-repro", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.build_opener(_HttpOnly).open(request, timeout=stall) as response:
            start = _start(response, archive, part, have)
            _receive(response, archive, part, start, stall)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server's file is no longer than the part: start again
            part.unlink(missing_ok=True)
        reason = f"HTTP {error.code} {' '.join(str(error.reason).split())}"
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Retry(reason, _retry_after(error, reason)) from error
        raise _GiveUp(reason) from error
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        cause = getattr(error, "reason", None)
        if getattr(error, "errno", None) in _DISK_ERRORS + _PATH_ERRORS:
            raise DataError(f"{part}: {error}") from error
        raise _Retry(f"{cause or error or type(error).__name__}") from error
    except ValueError as error:  # of urllib, for a redirect to something that is no address
        raise _GiveUp(f"redirected to an invalid address ({error})") from error
    if _size(part) < archive.size:
        raise _Retry(f"the connection ended after {_size(part):,} of {archive.size:,} bytes")


def _retry_after(error: urllib.error.HTTPError, reason: str) -> float:
    """Seconds that the server asks to wait, 0 if it does not say."""
    text = (error.headers.get("Retry-After") or "").strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        try:
            moment = email.utils.parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):  # absent or meaningless
            return 0.0
        wait = max(0.0, moment - time.time())
    else:
        wait = float(text)
    if wait > _RETRY_AFTER_LIMIT:
        raise _GiveUp(f"{reason}, and the server asks to wait {math.ceil(wait):,} s")
    return wait


def _start(response: Any, archive: Archive, part: Path, have: int) -> int:
    """Offset of the first byte that the server sends, after checking that it sends the right file."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _GiveUp("the server sent an HTML page instead of the file")
    length = response.headers.get("Content-Length", "")
    start = 0
    total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else archive.size
    if response.status == 206:
        given = response.headers.get("Content-Range", "").strip()
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", given)
        if match is None or int(match[1]) not in (0, have):
            part.unlink(missing_ok=True)  # a server that cannot continue it may still send the whole file
            raise _Retry("the server answered with another range than asked for")
        start = int(match[1])
        total = archive.size if match[2] == "*" else int(match[2])
    if total != archive.size:
        raise _GiveUp(f"the server offers {total:,} bytes, expected {archive.size:,}")
    return start


def _receive(response: Any, archive: Archive, part: Path, start: int, stall: float) -> None:
    """Append what arrives to `part`; a connection that trickles for `stall` seconds is as good as dead."""
    with open(part, "ab" if start else "wb") as file, progress_bar(archive.size, "B", archive.name, start) as bar:
        received, counted, since = start, start, time.monotonic()
        # read1 hands over what has arrived: after a stall, nothing received is lost
        while received <= archive.size and (block := response.read1(_BLOCK)):
            file.write(block)
            received += len(block)
            bar.update(len(block))
            if (seconds := time.monotonic() - since) >= stall:
                if received - counted < _TRICKLE * seconds and received < archive.size:
                    raise _Retry(f"only {received - counted:,} bytes in {seconds:.0f} s")
                counted, since = received, time.monotonic()
    if received > archive.size:
        part.unlink()
        raise _GiveUp(f"the server sent more than {archive.size:,} bytes")


def _accept(archive: Archive, part: Path, target: Path) -> None:
    algorithm, _, expected = archive.digest.partition(":")
    found = file_digest(part, algorithm)
    if found != expected:
        part.unlink()
        raise _GiveUp(f"{archive.name} has the wrong {algorithm} {found}, expected {expected}")
    durable_rename(part, target)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
