"""Reading the raw files of a benchmark from a folder, a tar or a zip file without trusting what is in there.

An archive is read in place: nothing is unpacked to disk, except the ImageNet class folders (`extract_class_tars`).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from wmse.datasets.source import Archive, Log
from wmse.errors import DataError
from wmse.progress import progress_bar

# Reading a damaged archive raises one of these (lzma and bz2 never occur here), or what the libraries did not expect.
_DAMAGE = (EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error)
_UNEXPECTED = (NotImplementedError, RuntimeError, ValueError, LookupError, ArithmeticError)
# The largest tar header of a type whose length varies (long names, dates), in bytes: tarfile reads these in one go.
_EXTRA_HEADER = 1 << 16
_EXTRA_TYPES = (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PADDING = 1 << 20  # The most bytes after the last member of a tar, whose last record is filled up.
_KEPT = 1 << 28  # The most bytes of members that are kept in memory; all of CIFAR has 186 MB.
_CLASS_TAR = re.compile(r"n\d{8}\.tar", re.ASCII)


# A file in an archive: its name, its size in bytes, and what opens it.
Member = tuple[str, int, Callable[[], IO[bytes]]]


class RawFiles(Protocol):
    """The official files of one benchmark; names are relative to the official top folder, with forward slashes."""

    form: str

    def where(self, name: str) -> str:
        """The file as shown in messages."""

    def listing(self, folder: str) -> list[str]:
        """Sorted names of the files directly in `folder`; empty if it does not exist."""

    def size(self, name: str) -> int:
        """Size of a file in bytes; DataError if it is missing."""

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file for reading; DataError if it is missing or turns out to be damaged."""

    def read(self, name: str, most: int) -> bytes:
        """The whole of a file that has at most `most` bytes; DataError if it has more, is missing or damaged."""
        size = self.size(name)
        if size > most:
            raise DataError(f"{self.where(name)}: {size:,} bytes, where at most {most:,} make sense")
        with self.open(name) as file:
            # By its size, not to its end: what a compressed member unpacks to is not what it says.
            content = file.read(size)
        if len(content) != size:
            raise DataError(f"{self.where(name)}: ends after {len(content):,} of {size:,} bytes")
        return content


class FolderFiles(RawFiles):
    """An extracted official folder."""

    def __init__(self, root: Path, form: str) -> None:
        self.root = root
        self.form = form

    def where(self, name: str) -> str:
        return str(self.root / name)

    def listing(self, folder: str) -> list[str]:
        place = self.root / folder
        return sorted(entry.name for entry in place.iterdir() if entry.is_file()) if place.is_dir() else []

    def size(self, name: str) -> int:
        path = self.root / name
        if not path.is_file():
            raise DataError(f"{path}: this file of the official folder is missing")
        return path.stat().st_size

    def open(self, name: str) -> IO[bytes]:
        self.size(name)
        return open(self.root / name, "rb")


class ArchiveFiles(RawFiles):
    """An official tar or zip archive: an index of its safe `members`, those of a zip for several threads at a time."""

    def __init__(self, path: Path, archive: Archive, members: Iterable[Member]) -> None:
        self.path, self.form = path, archive.form
        self._prefix = archive.folder + "/" if archive.folder else ""
        self._members: dict[str, tuple[int, Callable[[], IO[bytes]]]] = {}
        self._folders: dict[str, list[str]] = {}
        for name, size, opened in members:
            relative = name.removeprefix("./")
            if relative.startswith(self._prefix):
                relative = relative.removeprefix(self._prefix)
                self._members[relative] = size, opened
                folder, _, base = relative.rpartition("/")
                self._folders.setdefault(folder, []).append(base)

    def where(self, name: str) -> str:
        return f"{self.path}: {self._prefix}{name}"

    def listing(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, []))

    def size(self, name: str) -> int:
        if name not in self._members:
            raise DataError(f"{self.where(name)}: this member of the official archive is missing")
        return self._members[name][0]

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        self.size(name)
        with readable(self.where(name)), self._members[name][1]() as file:
            yield file


@contextlib.contextmanager
def open_raw(path: Path, archive: Archive) -> Iterator[RawFiles]:
    """Open the raw files at `path`: an extracted folder, a .zip or a .tar(.gz).

    Raises DataError for unsafe, oversized, damaged or truncated archives.
    """
    if path.is_dir():
        yield FolderFiles(path, archive.form)
        return
    limit = unpacked_limit(archive.size)
    with contextlib.ExitStack() as opened:
        with readable(path):
            if path.suffix == ".zip":
                file = opened.enter_context(zipfile.ZipFile(path))
                files = ArchiveFiles(path, archive, checked_zip_members(file, path, limit))
            else:
                tar = opened.enter_context(open_tar(path, limit))
                files = ArchiveFiles(path, archive, _tar_members(tar, path, limit))
        yield files


def unpacked_limit(packed_size: int) -> int:
    """Most bytes that an archive of `packed_size` bytes may hold; images hardly compress, so twice that is ample."""
    return 2 * packed_size + (1 << 20)


@contextlib.contextmanager
def open_tar(path: Path, limit: int) -> Iterator[tarfile.TarFile]:
    """Open a tar file, perhaps gzipped, whose headers and members have at most `limit` bytes together."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if packed else contextlib.nullcontext(file) as content, _tar_in(content, limit) as tar:
            yield tar


def _tar_in(file: IO[bytes], limit: int) -> tarfile.TarFile:
    return tarfile.open(fileobj=_Limited(file, limit + _PADDING), mode="r:", tarinfo=_Header)


class _Limited:
    """What `tarfile` reads from: an error after `limit` bytes, as it believes every size that a header states."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int) -> bytes:
        if size < 0 or self._file.tell() + size > self._limit:
            raise tarfile.ReadError("a header asks for more than the archive may hold")
        return self._file.read(size)


class _Header(tarfile.TarInfo):
    """A header that `tarfile` may follow: a size below 0 leads it in circles, some others would fill the memory."""

    @classmethod
    def frombuf(cls, buffer: bytes, encoding: str, errors: str) -> Any:
        header = super().frombuf(buffer, encoding, errors)
        long = header.size > _EXTRA_HEADER and header.type in _EXTRA_TYPES
        if header.size < 0 or long or header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"member {header.name!r} has a header that no data set has")
        return header


def checked_members(tar: tarfile.TarFile, path: Path, limit: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of `tar`; DataError at the first unsafe one or once they exceed `limit` bytes together.

    The checks are made here because `tarfile`'s own extraction filters are absent from early Python 3.11 releases.
    """
    total = 0
    for member in tar:
        _check_name(path, member.name)
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{path}: member {member.name!r} is a link or a device; refused")
        if member.size < 0 or member.issparse():  # as an extended header may say
            raise DataError(f"{path}: member {member.name!r} has no honest size; refused")
        total += tarfile.BLOCKSIZE + member.size
        _check_total(path, member.name, total, limit)
        yield member


def _tar_members(tar: tarfile.TarFile, path: Path, limit: int) -> Iterator[Member]:
    """The files in `tar`, read at once as far as they fit: what is gzipped would be unpacked again for each of them."""
    room = _KEPT
    for member in checked_members(tar, path, limit):
        if member.isfile() and member.size <= room:
            room -= member.size
            with tar.extractfile(member) as file:
                yield member.name, member.size, partial(io.BytesIO, file.read(member.size))
        elif member.isfile():
            yield member.name, member.size, partial(tar.extractfile, member)


def checked_zip_members(file: zipfile.ZipFile, path: Path, limit: int) -> Iterator[Member]:
    """Yield the files in a zip archive; DataError as `checked_members`."""
    total = 0
    for member in file.infolist():
        _check_name(path, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path}: member {member.filename!r} is a link or a device; refused")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: member {member.filename!r} is neither stored nor deflated; refused")
        total += member.file_size
        _check_total(path, member.filename, total, limit)
        if not member.is_dir():
            yield member.filename, member.file_size, partial(file.open, member)


def extract_class_tars(path: Path, target: Path, wanted: Iterable[str] | None, log: Log) -> None:
    """Unpack ImageNet's training archive, a tar of one tar per class, into `target`/<wnid>/*.JPEG.

    Each class folder appears under its name only when complete and existing ones are kept, so an interrupted run goes
    on where it stopped. With `wanted`, other classes are skipped. Raises DataError for unsafe or damaged members.
    """
    chosen = None if wanted is None else set(wanted)
    limit = unpacked_limit(path.stat().st_size)
    with (
        readable(path),
        open_tar(path, limit) as outer,
        progress_bar(path.stat().st_size, "B", f"unpacking {path.name}") as bar,
    ):
        for member in checked_members(outer, path, limit):
            bar.update(member.offset - bar.n)
            name = PurePosixPath(member.name)
            wnid = name.stem
            if not (member.isfile() and _CLASS_TAR.fullmatch(name.name)) or (chosen is not None and wnid not in chosen):
                continue
            if (target / wnid).is_dir():
                continue
            log(f"unpacking {path.name}: {wnid}")
            most = unpacked_limit(member.size)
            inside = Path(f"{path}:{member.name}")
            with readable(inside), outer.extractfile(member) as file, _tar_in(file, most) as inner:
                unpack_flat(inner, inside, target / wnid, most)


def unpack_tar(path: Path, target: Path, limit: int) -> None:
    """Unpack a tar of plain files into the new folder `target`; see `unpack_flat`."""
    with readable(path), open_tar(path, limit) as tar:
        unpack_flat(tar, path, target, limit)


def unpack_flat(tar: tarfile.TarFile, path: Path, target: Path, limit: int) -> None:
    """Unpack the regular files of `tar`, which must not lie in subfolders, into the new folder `target`."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with readable(path):
        for member in checked_members(tar, path, limit):
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if "/" in name or not name.isprintable():
                raise DataError(f"{path}: member {member.name!r} lies in a subfolder or has a strange name; refused")
            with tar.extractfile(member) as source, open(partial / name, "xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    partial.rename(target)


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
        raise DataError(f"{path}: member {name!r} points outside the archive's folder; refused")


def _check_total(path: Path, name: str, total: int, limit: int) -> None:
    if total > limit:
        raise DataError(f"{path}: unpacks to more than {limit:,} bytes (at member {name!r}); refused")


@contextlib.contextmanager
def readable(what: Path | str) -> Iterator[None]:
    """Turn what reading a damaged archive raises into one DataError."""
    try:
        yield
    except MemoryError:
        raise DataError(f"{what}: there is too little memory to read it") from None
    except _DAMAGE + _UNEXPECTED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk is full or may not be read
            raise DataError(f"{what}: {error}") from error
        reason = str(error) or type(error).__name__
        raise DataError(f"{what}: damaged or truncated ({reason}); delete the file and get it again") from error
