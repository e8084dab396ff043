"""From raw files to the prepared form: find them, download them if need be, verify, parse, store."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wmse.datasets.archives import open_raw
from wmse.datasets.download import DownloadError, download
from wmse.datasets.prepared import Prepared, load_prepared, write_arrays, write_listing
from wmse.datasets.source import Archive, Log, Source
from wmse.errors import DataError
from wmse.files import file_digest
from wmse.locks import exclusive_lock
from wmse.progress import progress_bar


def prepare_source(
    source: Source, data_root: Path, *, download: bool = True, pack: bool = False, log: Log = print
) -> Prepared:
    """Bring `source` into its prepared form unless it is there already; see `wmse.datasets.prepare`."""
    if pack and not source.streamed:
        raise DataError(f"{source.name}: its images are stored as an array, not as JPEG files: leave out --pack")
    data_root = Path(data_root)
    if found := _find_prepared(source, data_root, pack):
        return found
    lock = data_root / source.name / ".prepare.lock"
    with exclusive_lock(lock, f"wmse prepare {source.name}", DataError, wait=math.inf, say=log):
        if found := _find_prepared(source, data_root, pack):  # another process may have finished meanwhile
            return found
        try:
            if source.streamed:
                write_listing(source, data_root, source.scan(source, data_root, log), pack)
            else:
                _prepare_arrays(source, data_root, download, log)
        except DataError as error:
            command = f"run `wmse prepare {source.name}`"
            if command in str(error):
                raise
            raise DataError(f"{error}\nOnce that is put right, {command} again") from error
        return load_prepared(source, data_root)


def _find_prepared(source: Source, data_root: Path, pack: bool) -> Prepared | None:
    """The prepared form that is there already, packed if it must be."""
    with contextlib.suppress(DataError):
        prepared = load_prepared(source, data_root)
        return prepared if prepared.packed or not pack else None
    return None


def placed_raw(source: Source, raw: Path) -> Iterator[tuple[Path, Archive]]:
    """All that lies in the folder `raw`: official archives, then official folders, or their content in `raw` itself."""
    if source.embedded is not None:
        yield Path(__file__).with_name(source.embedded.folder), source.embedded
    for archive in source.archives:
        if (raw / archive.name).is_file():
            yield raw / archive.name, archive
    for archive in source.archives:
        if archive.folder and (raw / archive.folder).is_dir():
            yield raw / archive.folder, archive
        elif archive.files and all((raw / name).is_file() for name in archive.files):
            yield raw, archive


def _what_to_place(source: Source, raw: Path) -> str:
    """What a user without network access has to place where."""
    lines = ["Place one of these by hand:"]
    for archive in source.archives:
        folder = f"{raw / archive.folder}/ with {', '.join(archive.files)}"
        if archive.urls:
            origin = f"{archive.size:,} bytes, {archive.digest.replace(':', ' ')}, from {' or '.join(archive.urls)}"
            lines += [f"  {raw / archive.name}", f"    {origin}", f"    or unpacked as {folder}"]
        else:  # a data set of one's own: nothing published to compare with
            lines += [f"  {folder}"]
    return "\n".join([*lines, f"Then run `wmse prepare {source.name}` again."])


def verify_raw(path: Path, archive: Archive) -> list[dict[str, Any]]:
    """Check an archive, or the files of an extracted folder, against the published sizes and digests.

    Returns a description of every checked file. Raises DataError naming the file, the expected and the found value.
    """
    if path.is_file():
        if path.stat().st_size != archive.size:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes, expected {archive.size:,}; delete it and get it again"
            )
        return [_verify_file(path, archive.name, archive.digest)]
    return [_verify_file(path / name, name, digest) for name, digest in archive.files.items()]


def _verify_file(path: Path, name: str, digest: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: this file of the official folder is missing")
    algorithm, _, expected = (digest or "sha256:").partition(":")
    found = file_digest(path, algorithm)
    if expected and found != expected:
        raise DataError(f"{path}: {algorithm} is {found}, expected {expected}; delete it and get it again")
    return {"file": name, "bytes": path.stat().st_size, "digest": f"{algorithm}:{found}"}


def _prepare_arrays(source: Source, data_root: Path, allowed: bool, log: Log) -> None:
    raw = (data_root / source.name / "raw").absolute()
    path, archive = next(placed_raw(source, raw), None) or _download_any(source, raw, allowed, log)
    log(f"{source.name}: checking and reading {path}")
    total = sum(source.rows(name) for name in source.arrays())
    with ThreadPoolExecutor(1) as pool, progress_bar(total, "images", source.name) as bar:
        checked = pool.submit(verify_raw, path, archive)
        try:
            with open_raw(path, archive) as files:
                write_arrays(source, data_root, source.parse(source, files), checked.result, str(path), bar.update)
        except Exception:
            checked.result()  # a file that is not the published one explains every other error
            raise


def _download_any(source: Source, raw: Path, allowed: bool, log: Log) -> tuple[Path, Archive]:
    """Fetch the first archive that some address delivers; one DataError with instructions if none does."""
    if not allowed:
        raise DataError(f"{source.name}: nothing in {raw} and downloading is off.\n{_what_to_place(source, raw)}")
    published = [archive for archive in source.archives if archive.urls]
    if not published:
        raise DataError(f"{source.name}: nothing in {raw}.\n{_what_to_place(source, raw)}")
    failures = []
    for archive in published:
        try:
            download(archive, raw / archive.name, log=log)
            return raw / archive.name, archive
        except DownloadError as failure:
            failures.append(str(failure))
    reasons = "\n".join(failures)
    raise DataError(
        f"{source.name}: nothing in {raw} and the download failed:\n{reasons}\n{_what_to_place(source, raw)}"
    )
