"""Files that would fill the memory, run code or never end: refused by name, by a process that may not take much."""

from __future__ import annotations

import gzip
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders import ROOT
from builders.hostile import circle, idx, picture, resized
from builders.raw import (
    WNIDS,
    cifar_source,
    imagenet_source,
    prepare_raw,
    put,
    stl_source,
    tar_bytes,
    tiny_source,
    write_cifar,
    write_imagenet,
    write_stl10,
    write_tiny,
)
from builders.runs import make_job, tiny_spec
from wmse.datasets import ArrayDataset, ArraySplit, cifar, stl10, tiny_imagenet
from wmse.datasets.archives import FolderFiles
from wmse.datasets.decode import decode_image
from wmse.errors import DataError
from wmse.images import FileImages
from wmse.runtime import Runtime
from wmse.training import pretrain
from wmse.views import ViewRecipe

MEMORY = 3 << 29  # bytes of addresses that a child may take; its libraries need a third of them
ZEROS = 1 << 26


def confined(code: str, *arguments: object) -> str:
    """Run `code` where memory is short; returns the message of the DataError in which it must end."""
    prelude = "import sys; from pathlib import Path; from wmse.errors import DataError\n"
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    program = f"{prelude}try:\n{body}except DataError as error:\n    print('refused:', error)\n"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: "), done.stdout
    assert "MemoryError" not in done.stdout  # it would have been luck
    return done.stdout


# --- archives ---------------------------------------------------------------------------------------------------------

READ_ALL = """
from wmse.datasets.archives import open_raw
from wmse.datasets.source import Archive
with open_raw(Path(sys.argv[1]), Archive("x", 1 << 20, "", (), "", "any", {})) as files:
    for name in files.listing(""):
        files.read(name, 1 << 22)
"""
UNPACK = """
from wmse.datasets.archives import extract_class_tars
extract_class_tars(Path(sys.argv[1]), Path(sys.argv[2]), None, lambda line: None)
"""


def endless(start: bytes) -> bytes:
    """`start` and 10 GB of zeros, gzipped into 10 MB."""
    return gzip.compress(start) + gzip.compress(bytes(ZEROS), 1) * 160


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type = kind
    return resized(info.tobuf(tarfile.GNU_FORMAT), size)


def lying_zip() -> bytes:
    """A member that unpacks to 10 GB and is declared to have 1,000 bytes."""
    packer = zlib.compressobj(1, wbits=-15)
    piece = packer.compress(bytes(ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = piece * 160 + b"\x03\x00"
    entry = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(stream), 1000, 1, 0)
    central = b"PK\1\2" + struct.pack("<H", 20) + entry + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"x"
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), 31 + len(stream), 0)
    return b"PK\3\4" + entry + b"x" + stream + central + b"PK\5\6" + end


def many_members() -> bytes:
    """10 GB of empty members, gzipped."""
    return gzip.compress(tarfile.TarInfo("x").tobuf() * (ZEROS // 512), 1) * 160


def sparse_map() -> bytes:
    """A sparse member whose map of 10 GB is to be read from the data."""
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    start = info.tobuf(tarfile.PAX_FORMAT) + b"9" * 15 + b"\n" + b"1\n" * 248
    return gzip.compress(start) + gzip.compress(b"1\n" * (ZEROS // 2), 1) * 160


TARS: dict[str, Callable[[], bytes]] = {
    "a member of 10 GB": lambda: endless(header(tarfile.REGTYPE, 10 << 30)),
    "an extended header of 10 GB": lambda: endless(header(tarfile.XHDTYPE, 10 << 30)),
    "a name of 10 GB": lambda: endless(header(tarfile.GNUTYPE_LONGNAME, 10 << 30)),
    "an extended header of 300 kB": lambda: endless(header(tarfile.XGLTYPE, 300_000)),
    "a negative size": lambda: circle() * 3,
    "10 GB of empty members": many_members,
    "a map of holes": sparse_map,
}


@pytest.mark.parametrize("what", TARS)
def test_a_tar_that_would_fill_the_memory_is_refused(tmp_path: Path, what: str, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    assert "archive.tar" in confined(READ_ALL, put(tmp_path / "archive.tar", TARS[what]()))


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    path = put(tmp_path / "archive.zip", lying_zip())
    with zipfile.ZipFile(path) as file:
        assert [(info.filename, info.file_size) for info in file.infolist()] == [("x", 1000)]
    assert "Bad CRC" in confined(READ_ALL, path)


def test_a_bomb_inside_a_class_archive_is_refused(tmp_path: Path, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    inner = header(tarfile.GNUTYPE_LONGNAME, 10 << 30)
    path = put(tmp_path / "train.tar", tar_bytes({"n00000001.tar": inner}))
    assert "train.tar:n00000001.tar" in confined(UNPACK, path, tmp_path / "out")
    assert not (tmp_path / "out/n00000001").exists()


# --- the raw files of the data sets -----------------------------------------------------------------------------------

READ_IDX = """
from wmse.datasets.archives import FolderFiles
from wmse.datasets.fashion_mnist import read_idx
read_idx(FolderFiles(Path(sys.argv[1]), "idx"), "x.gz", 3)
"""


@pytest.mark.parametrize("sizes", [(2, 28, 28), (1 << 31, 1 << 31, 1 << 31), (60_000, 28, 28)])
def test_a_gzip_stream_without_end_is_refused(tmp_path: Path, sizes: tuple[int, ...], counts: Counter[str]) -> None:
    counts["inputs"] += 1
    put(tmp_path / "x.gz", endless(idx(*sizes, values=0)))
    assert "x.gz" in confined(READ_IDX, tmp_path)


def nested(depth: int) -> bytes:
    """A batch of 2 ** depth labels in a few bytes: each list holds the one before it twice."""
    labels: list = [0, 0]
    for _ in range(depth - 1):
        labels = [labels, labels]
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": labels})


PICKLES = {
    "an index of 2 ** 31": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a bytearray of 2 ** 40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "bytes of 2 ** 62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "an array of 2 ** 40": b"\x80\x02cnumpy\nndarray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.",
    "2 ** 40 labels": nested(40),
    "a list in a list in a list": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".",
}
READ_CIFAR = """
from builders.raw import cifar_source
from wmse.datasets import cifar
from wmse.datasets.archives import FolderFiles
next(cifar.parse(cifar_source("cifar10"), FolderFiles(Path(sys.argv[1]), "python")))
"""


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_would_fill_the_memory_is_refused(tmp_path: Path, what: str, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    put(tmp_path / "data_batch_1", PICKLES[what])
    assert "data_batch_1" in confined(READ_CIFAR, tmp_path)


@pytest.mark.parametrize("label", [10, 255, 256, -1, 2.0, True, "3", None, [3], 10**30])
def test_a_label_that_is_none_of_the_classes_is_refused(tmp_path: Path, label: Any, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": [*range(9), label]}
    put(folder / "test_batch", pickle.dumps(batch))
    with pytest.raises(DataError, match=r"test has a label outside 0\.\.9|test_batch: expected .* whole numbers"):
        prepare_raw(cifar_source("cifar10"), tmp_path)


@pytest.mark.parametrize(
    ("write", "module", "source", "form", "name"),
    [
        (
            lambda raw: write_cifar("cifar10", "binary", raw),
            cifar,
            cifar_source("cifar10"),
            "binary",
            "data_batch_1.bin",
        ),
        (lambda raw: write_cifar("cifar10", "python", raw), cifar, cifar_source("cifar10"), "python", "data_batch_1"),
        (lambda raw: write_stl10(raw)[0], stl10, stl_source(), "binary", "train_y.bin"),
        (lambda raw: write_stl10(raw)[0], stl10, stl_source(), "binary", "train_X.bin"),
        (write_tiny, tiny_imagenet, tiny_source(), "jpeg", "wnids.txt"),
        (write_tiny, tiny_imagenet, tiny_source(), "jpeg", "val/val_annotations.txt"),
        (write_tiny, tiny_imagenet, tiny_source(), "jpeg", "val/images/val_0.JPEG"),
    ],
)
def test_huge_files_are_refused_unread(
    tmp_path: Path, counts: Counter[str], write: Any, module: Any, source: Any, form: str, name: str
) -> None:
    """In this process: whoever read them would not come back."""
    counts["inputs"] += 1
    folder = write(tmp_path)
    with open(folder / name, "wb") as file:
        file.truncate(1 << 42)  # 4 TB that take no space
    with pytest.raises(DataError, match=Path(name).name):
        list(module.parse(source, FolderFiles(folder, form)))


def test_a_wrong_header_of_a_prepared_array_is_refused(tmp_path: Path, counts: Counter[str]) -> None:
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    prepared = prepare_raw(cifar_source("cifar10"), tmp_path)
    path = prepared.folder / "test-labels.npy"
    good = path.read_bytes()
    values = np.arange(10).tobytes()
    for content, words in (
        (npy("<i8", "(1 << 40,)", values), "not a readable array"),
        (npy("<i8", "(9999999999999,)", values), "not a readable array"),
        (npy("|O", "(10,)", values), "not a readable array"),
        (npy("<u8", "(10,)", values), "uint64 .* expected int64"),
        (npy("<i8", "(2, 5)", values), "expected int64"),
        (npy("<i8", "(10,)", values[:-8] + bytes([99, *bytes(7)])), "sha256"),
    ):
        counts["inputs"] += 1
        assert len(content) == len(good)
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as failure:
            _ = prepare_raw(cifar_source("cifar10"), tmp_path)["test"].labels
        assert str(path) in str(failure.value)


def npy(dtype: str, shape: str, values: bytes) -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + head.ljust(117).encode() + b"\n" + values


# --- images -----------------------------------------------------------------------------------------------------------


def png(w: int, h: int) -> bytes:
    """A valid PNG of one bit per pixel, all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((1 + (w + 7) // 8) * h), 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


DECODE = "from wmse.datasets.decode import decode_image; decode_image(Path(sys.argv[1]).read_bytes(), sys.argv[1])"
BOMBS = {
    "9,500 x 9,500": lambda: png(9_500, 9_500),  # above Pillow's warning
    "30,000 x 30,000": lambda: png(30_000, 30_000),  # above its error
    "65,000 x 1": lambda: picture("RGB", "JPEG", (65_000, 1)),
    "1 x 65,000": lambda: picture("L", "JPEG", (1, 65_000)),
}


@pytest.mark.parametrize("what", BOMBS)
def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path, what: str, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    assert "x.JPEG" in confined(DECODE, put(tmp_path / "x.JPEG", BOMBS[what]()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    pixels = decode_image(picture(mode, form, (5, 4)), "x")
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)


@pytest.mark.parametrize("form", ["GIF", "EPS", "TIFF", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, form: str) -> None:
    """Pillow would start Ghostscript for an EPS file that is named .JPEG."""
    path = put(tmp_path / "x.JPEG", picture("RGB", form, (64, 64)))
    with pytest.raises(DataError, match=r"x\.JPEG: not a readable image"):
        decode_image(path.read_bytes(), str(path))
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    path.rename(folder / f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG")
    with pytest.raises(DataError, match=f"{WNIDS[0]}_1.JPEG: not a readable image"):
        prepare_raw(tiny_source(), tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_tiny_images_are_as_good_as_others(tmp_path: Path, size: tuple[int, int]) -> None:
    path = put(tmp_path / "x.JPEG", picture("RGB", "JPEG", size))
    images = FileImages([path], ViewRecipe(size=16), 20, torch.device("cpu"))
    for view in (*images.views(torch.tensor([0]), 2, 0, 0), *images.plain()):
        assert view.shape == (1, 3, 16, 16)
        assert view.isfinite().all()


def test_a_bomb_among_the_images_stops_a_training_with_its_name(tmp_path: Path, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    paths = [put(tmp_path / f"{i}.JPEG", picture("RGB", "JPEG", (20 + i, 30))) for i in range(48)]
    put(paths[17], png(9_500, 9_500))
    split = ArraySplit(np.arange(48) % 3, files=paths)
    spec = tiny_spec(
        benchmark="imagenet100", batch_size=24, w_size=12, view_size=16, eval_resize=20, epochs=1, lr_drops=[]
    )
    with pytest.raises(DataError, match=r"17\.JPEG: 9500x9500 pixels, which is refused"):
        pretrain(
            make_job(
                spec,
                ArrayDataset(pretrain=split, train=split, test=split),
                tmp_path / "run",
                Runtime(torch.device("cpu")),
            )
        )


def test_what_is_no_image_file_is_not_listed(tmp_path: Path, counts: Counter[str]) -> None:
    """A pipe would make the training wait for ever, a line break would shift the list of files."""
    raw = tmp_path / "imagenet/raw"
    write_imagenet(raw, WNIDS)
    folder = raw / "train" / WNIDS[0]
    for name, make in {
        "pipe.JPEG": os.mkfifo,
        "folder.JPEG": os.mkdir,
        "gone.JPEG": lambda p: p.symlink_to("nowhere"),
    }.items():
        counts["inputs"] += 1
        make(folder / name)
    assert len(prepare_raw(imagenet_source(), tmp_path)["train"].paths) == 6
    (tmp_path / "imagenet/prepared/manifest.json").unlink()
    for name in ("a\nb.JPEG", "a\u2028b.JPEG", b"\xff.JPEG".decode("utf-8", "surrogateescape")):
        counts["inputs"] += 1
        put(folder / name, b"x")
        with pytest.raises(DataError, match="cannot be listed"):
            prepare_raw(imagenet_source(), tmp_path)
        (folder / name).unlink()


def test_a_line_too_few_in_the_list_of_files_is_noticed(tmp_path: Path, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    write_imagenet(tmp_path / "imagenet/raw", WNIDS)
    path = prepare_raw(imagenet_source(), tmp_path).folder / "test-paths.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))  # the size stays
    with pytest.raises(DataError, match=r"test-paths\.txt: 2 lines for 3 images"):
        _ = prepare_raw(imagenet_source(), tmp_path)["test"].paths
