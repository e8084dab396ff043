"""Archives: read in place; unsafe and damaged ones are refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from builders.raw import (
    cifar_source,
    pack,
    prepare_raw,
    put,
    quiet,
    tar_bytes,
    tiny_source,
    with_archive,
    write_cifar,
    write_tiny,
)
from wmse.datasets import Source
from wmse.datasets.archives import extract_class_tars, open_raw
from wmse.errors import DataError


def cifar_tar(path: Path, *extra: tuple[tarfile.TarInfo, bytes]) -> Source:
    """A valid small binary archive of CIFAR-10 with `extra` members in front."""
    write_cifar("cifar10", "binary", path.parent.parent / "unpacked")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for info, content in extra:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.add(path.parent.parent / "unpacked/cifar-10-batches-bin", "cifar-10-batches-bin")
    return with_archive(cifar_source("cifar10"), path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "content", "message"),
    [
        (member("/etc/evil"), b"x", "'/etc/evil' points outside"),
        (member("cifar-10-batches-bin/../../evil"), b"x", "points outside"),
        (member("..\\evil"), b"x", "points outside"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), b"", "'link' is a link"),
        (member("hard", tarfile.LNKTYPE, "/etc/passwd"), b"", "'hard' is a link"),
        (member("device", tarfile.CHRTYPE), b"", "'device' is a link or a device"),
        (member("bomb"), bytes(8 << 20), "unpacks to more than .*'bomb'"),
    ],
)
def test_unsafe_tar_is_refused(tmp_path, info, content, message):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    source = cifar_tar(path, (info, content))
    with pytest.raises(DataError, match=rf"cifar-10-binary\.tar\.gz.*{message}"):
        prepare_raw(source, tmp_path)


def test_truncated_tar_is_named(tmp_path):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    cifar_tar(path)
    content = path.read_bytes()
    for cut in (len(content) // 2, len(content) * 9 // 10, 30, 0):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
            prepare_raw(with_archive(cifar_source("cifar10"), path), tmp_path)


@pytest.mark.parametrize(
    ("name", "mode", "size", "message"),
    [
        ("/evil", 0o100644, 1, "points outside"),
        ("tiny-imagenet-200/../../evil", 0o100644, 1, "points outside"),
        ("C:evil", 0o100644, 1, "points outside"),
        ("link", 0o120777, 1, "is a link"),
        ("bomb", 0o100644, 8 << 20, "unpacks to more than"),
    ],
)
def test_unsafe_zip_is_refused(tmp_path, name, mode, size, message):
    path = tmp_path / "tiny_imagenet/raw/tiny-imagenet-200.zip"
    folder = write_tiny(tmp_path / "unpacked")
    path.parent.mkdir(parents=True)
    pack(folder, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, bytes(size), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=rf"tiny-imagenet-200\.zip.*{message}"):
        prepare_raw(with_archive(tiny_source(), path), tmp_path)


def test_damaged_zip_is_named(tmp_path):
    path = tmp_path / "tiny_imagenet/raw/tiny-imagenet-200.zip"
    folder = write_tiny(tmp_path / "unpacked")
    path.parent.mkdir(parents=True)
    pack(folder, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: damaged or truncated"):
        prepare_raw(with_archive(tiny_source(), path), tmp_path)
    broken = bytearray(content)
    start = content.index(b"\xff\xd8\xff")
    broken[start + 20 : start + 40] = bytes(20)
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: tiny-imagenet-200/\S+: damaged or truncated"):
        prepare_raw(with_archive(tiny_source(), path), tmp_path)


@pytest.mark.parametrize("kept", [1 << 28, 40_000, 0])  # one test batch has 30,730 bytes
def test_a_tar_in_any_order_is_unpacked_once_as_far_as_its_members_are_kept(tmp_path, monkeypatch, kept):
    monkeypatch.setattr("wmse.datasets.archives._KEPT", kept)
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    path = tmp_path / "packed/cifar10/raw/cifar-10-binary.tar.gz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):  # the first to be read comes last
            tar.add(file, f"{folder.name}/{file.name}")
    rewinds = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: (rewinds.append(1), rewind(reader)))
    packed = prepare_raw(with_archive(cifar_source("cifar10"), path), tmp_path / "packed")
    assert (not rewinds) == (kept == 1 << 28)
    assert packed.digest == prepare_raw(cifar_source("cifar10"), tmp_path).digest


def test_archive_members_are_read_in_place(tmp_path):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    source = cifar_tar(path)
    archive = next(archive for archive in source.archives if archive.form == "binary")
    with open_raw(path, archive) as files:
        assert files.size("test_batch.bin") == 10 * 3073
        assert "test_batch.bin" in files.listing("")
        with pytest.raises(DataError, match=r"nothing\.bin: .*missing"), files.open("nothing.bin"):
            pass
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_class_archives_are_chosen_and_checked(tmp_path):
    outer = put(
        tmp_path / "train.tar",
        tar_bytes({"n00000001.tar": tar_bytes({"a.JPEG": b"1"}), "n00000002.tar": tar_bytes({"../b.JPEG": b"2"})}),
    )
    extract_class_tars(outer, tmp_path / "train", ["n00000001"], quiet)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["n00000001"]
    with pytest.raises(DataError, match=r"n00000002\.tar: member '\.\./b\.JPEG' points outside"):
        extract_class_tars(outer, tmp_path / "train", None, quiet)
    assert not list(tmp_path.rglob("b.JPEG"))
