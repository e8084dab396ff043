"""Whatever bytes are read and whatever arguments are given: a result, or one clear message.

Never another exception, never a hang, nothing written outside the folder that was named, nothing executed.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import signal
import socket
import string
import struct
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, ArrayDataset, make_job, tiny_spec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets import (
    WNIDS,
    cifar_source,
    imagenet_source,
    put,
    python2_pickle,
    quiet,
    run,
    stl_source,
    tar_bytes,
    tiny_source,
    write_cifar,
    write_imagenet,
    write_stl10,
    write_tiny,
)
from test_download import CONTENT, Server, whole
from test_report import GRAPH, make_run

import wmse.features
from wmse.cli import main
from wmse.config import RunSpec, load_project, make_spec, read_yaml
from wmse.config.spec import FIELDS
from wmse.datasets import cifar, fashion_mnist, stl10, tiny_imagenet
from wmse.datasets.archives import FolderFiles, extract_class_tars, open_raw
from wmse.datasets.decode import decode_image
from wmse.datasets.download import download
from wmse.datasets.prepared import load_prepared
from wmse.datasets.source import Archive
from wmse.encoder import load_encoder, save_encoder
from wmse.errors import LONGEST_MESSAGE, DataError, WmseError
from wmse.files import content_digest
from wmse.methods import build_encoder
from wmse.report import write_claims, write_dag, write_plots, write_tables
from wmse.report.dag import direct, layers, parse_dot
from wmse.runs.evaluate import evaluate
from wmse.runs.verify import verify
from wmse.runtime import Runtime, resolve
from wmse.training import pretrain

# What is made here is meant to be strange; a warning about it is no finding.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Duplicate name", "ignore:Reading `.npy`", "ignore:overflow encountered in multiply"
)

HANG = 30  # seconds, after which an input counts as one that never ends


class Hang(BaseException):
    """No handler of ours catches it."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hang(f"no end after {HANG} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome(act: Callable[[], Any], name: str = "") -> Any:
    """The result of `act`, or its WmseError, whose message must be of reasonable length and hold `name`."""
    with deadline():
        try:
            return act()
        except WmseError as error:
            message = str(error)
            assert name in message
            assert 0 < len(message.strip()) <= LONGEST_MESSAGE
            return error


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def fuzz(long: bool, counts: Counter[str]) -> Callable[..., None]:
    """Call a check on `few` drawn values, in the long part on `many` others each time; first on the `examples`.

    The examples are what once failed, or what nobody draws by chance.
    """

    def search(
        check: Callable[[Any], None], values: st.SearchStrategy[Any], few: int, many: int, examples: Any = ()
    ) -> None:
        def one(value: Any) -> None:
            counts["inputs"] += 1
            check(value)

        test = given(values)(one)
        for value in examples:
            test = example(value)(test)
        settings(
            max_examples=many if long else few,
            derandomize=not long,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(test)()

    return search


# --- what is drawn ----------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from(
        [bytes(4), bytes(8), b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\n", b","]
    ),
)


@st.composite
def mutated(draw: st.DrawFn, *seeds: bytes) -> bytes:
    """One of `seeds` with up to four places changed, inserted, removed, repeated or cut off."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "change", "insert", "remove", "repeat", "cut"])):
            case "change":
                piece = draw(PIECES)
                content[at : at + len(piece)] = piece
            case "insert":
                content[at:at] = draw(PIECES)
            case "remove":
                del content[at : at + length]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.integers(1, 3))
            case "cut":
                del content[at:]
    return bytes(content)


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan]),
    st.floats(),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../../x", "/x", "\0", "é\u2028\ud800", "* 2", "* 9e9", "nan", "1e999", "true", "x" * 5000]
    ),
    st.sampled_from(
        ["9" * 5000, "* " + "9" * 400, "wmse-2", "wmse-" + "9" * 5000, "cifar10", "cholesky", "seed0", "=", "\n"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, seed: dict[str, Any]) -> dict[str, Any]:
    """`seed` with one to three of its values, at any depth, replaced or removed."""
    content = copy.deepcopy(seed)
    for path in draw(st.lists(st.sampled_from(list(places(seed))), min_size=1, max_size=3)):
        parent: Any = content
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took it away
            for key in path[:-1]:
                parent = parent[key]
            if draw(st.integers(0, 4)):
                parent[path[-1]] = draw(VALUES)
            else:
                del parent[path[-1]]
    return content


def as_json(content: Any, seal: bool = False) -> str:
    """As JSON, with numbers of any length; `seal` gives it the digest without which nothing else would be looked at."""
    sys.set_int_max_str_digits(0)
    try:
        if seal and isinstance(content, dict):
            content = {**content, "sha256": content_digest(content)}
        return json.dumps(content)
    finally:
        sys.set_int_max_str_digits(4300)


# --- data sets --------------------------------------------------------------------------------------------------------

BATCH = {b"data": np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072), b"labels": [3, 9]}
PICKLES = [python2_pickle(BATCH), *(pickle.dumps(BATCH, protocol=protocol) for protocol in (2, 3, 4, 5))]
SMALL = [content.replace(BATCH[b"data"].tobytes(), b"") for content in PICKLES]  # so that changes hit more than pixels


class Canary:
    """Its pickle would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def opcodes(canary: bytes) -> st.SearchStrategy[bytes]:
    """Programs for the unpickler: its operations in any order, with any arguments."""
    codes = [
        getattr(pickle, name)[:1] for name in dir(pickle) if name.isupper() and isinstance(getattr(pickle, name), bytes)
    ]
    globals_ = [b"cos\nmkdir\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"]
    some = st.sampled_from([*codes, *globals_, b"(", b"t", b"R", b"b", b"0", b"2", b"}", b"]", b"X" + canary, b"."])
    return st.lists(st.one_of(some, PIECES), max_size=25).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


def test_fuzzed_cifar_pickles(tmp_path: Path, fuzz: Any) -> None:
    source, files = cifar_source("cifar10"), FolderFiles(tmp_path, "python")
    canary = tmp_path / "canary"
    name = len(str(canary)).to_bytes(4, "little") + str(canary).encode()

    def check(content: bytes) -> None:
        (tmp_path / "data_batch_1").write_bytes(content)
        result = outcome(lambda: next(cifar.parse(source, files)), "data_batch_1")
        assert not canary.exists()
        if not isinstance(result, DataError):
            array, images, labels = result
            assert (array, images.dtype, labels.dtype) == ("train", np.uint8, np.int64)
            assert images.shape == (len(labels), 3, 32, 32)

    attack = pickle.dumps({b"data": Canary(canary), b"labels": [1]})
    fuzz(check, mutated(*PICKLES, *SMALL, attack), few=120, many=1500, examples=[*PICKLES, attack])
    fuzz(check, opcodes(name), few=100, many=1500)


def test_fuzzed_cifar_records(tmp_path: Path, fuzz: Any) -> None:
    files = FolderFiles(tmp_path, "binary")
    record = bytes(3073)

    def check(content: bytes) -> None:
        (tmp_path / "data_batch_1.bin").write_bytes(content)
        outcome(lambda: next(cifar.parse(cifar_source("cifar10"), files)), "data_batch_1.bin")

    fuzz(check, mutated(record * 2, b""), few=30, many=300, examples=[b"", record])


def test_fuzzed_stl10(tmp_path: Path, fuzz: Any) -> None:
    folder, _, _ = write_stl10(tmp_path)
    files, good = FolderFiles(folder, "binary"), (folder / "train_y.bin").read_bytes()

    def check(content: bytes) -> None:
        (folder / "train_y.bin").write_bytes(content)
        outcome(lambda: list(stl10.parse(stl_source(), files)), "train_y.bin")

    fuzz(check, mutated(good), few=30, many=300, examples=[b""])


def idx(*sizes: int, values: int) -> bytes:
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + bytes(values)


def test_fuzzed_idx_files(tmp_path: Path, fuzz: Any) -> None:
    files, good = FolderFiles(tmp_path, "idx"), idx(2, 28, 28, values=1568)

    def check(content: bytes) -> None:
        (tmp_path / "x.gz").write_bytes(content)
        result = outcome(lambda: fashion_mnist.read_idx(files, "x.gz", 3), "x.gz")
        assert isinstance(result, DataError) or result.dtype == np.uint8

    wraps = idx(1 << 22, 1 << 21, 1 << 21, values=0)  # 2 ** 64 values, which is 0 to NumPy
    fuzz(
        check, mutated(good, b"").map(lambda c: gzip.compress(c, 1)), few=60, many=500, examples=[gzip.compress(wraps)]
    )
    fuzz(check, mutated(gzip.compress(good)), few=60, many=500)


# --- downloads --------------------------------------------------------------------------------------------------------

FILE = CONTENT[:2000]
ANSWERS = [
    b"HTTP/1.0 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: 2000\r\n\r\n" + FILE,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + FILE + b"\r\n0\r\n\r\n",
    b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 500-1999/2000\r\n\r\n" + FILE[500:],
    b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1/b\r\n\r\n",
    b"HTTP/1.0 503 Busy\r\nRetry-After: Wed, 25 Nov 2026 00:00:00 GMT\r\n\r\n",
]


def test_fuzzed_answers_of_a_server(tmp_path: Path, fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, connect = Server(Counter()), socket.create_connection
    target = tmp_path / "x.gz"
    archive = Archive("x.gz", 2000, f"md5:{hashlib.md5(FILE).hexdigest()}", (server.url("/a"),), "", "", {})

    def local(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        if address != ("127.0.0.1", server.http.server_port):
            raise ConnectionRefusedError(f"no connection to {address}")
        return connect(address, *arguments, **options)

    def fetch(*steps: Callable[[Any], None]) -> Any:
        server.serve("/a", *steps)
        return outcome(lambda: download(archive, target, log=quiet, sleep=lambda seconds: None))

    def check(answers: list[bytes]) -> None:
        target.with_name("x.gz.part").write_bytes(FILE[:500])
        result = fetch(*(lambda request, answer=answer: request.wfile.write(answer) for answer in answers))
        assert target.exists() == (result is None)
        target.unlink(missing_ok=True)
        assert fetch(whole(FILE)) is None  # no leftover spoils a later try
        assert target.read_bytes() == FILE
        target.unlink()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", local)
    fuzz(check, st.lists(mutated(*ANSWERS), min_size=1, max_size=4), few=20, many=500, examples=[[a] for a in ANSWERS])
    server.close()


# --- archives ---------------------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(
        ["top/a", "top/b/c", "/x", "../x", "top/../../x", "..", ".", "", "./top/a", "C:x", "a\\..\\x", "n00000001.tar"]
    ),
    st.text(max_size=6),
    st.sampled_from(["...tar", "..tar", "\udcff", "\u2028", "x" * 300, "top/a/", "n00000001.tar/x", "a\nb"]),
)
ARCHIVE = Archive("x", 1 << 16, "", (), "top", "any", {})


KINDS = [tarfile.REGTYPE] * 4 + [bytes([code]) for code in b"123456S7gxXLKDV\0"]
CONTENTS = [b"", b"1\n2\n", bytes(600), tar_bytes({"a.JPEG": b"1"}), tar_bytes({"../a": b"1"})]
RECORDS = st.dictionaries(
    st.sampled_from(["size", "path", "mtime", *(f"GNU.sparse.{key}" for key in ("major", "minor", "realsize", "map"))]),
    st.sampled_from(["1", "0", "-512", "x", "1e9", "9" * 30, "../x", "0,1"]),
    max_size=3,
)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """A tar file of members that no honest one has, perhaps with damaged bytes, perhaps gzipped."""
    parts = []
    form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    for _ in range(draw(st.integers(1, 3))):
        info = tarfile.TarInfo(draw(NAMES))
        info.type = draw(st.sampled_from(KINDS))
        info.linkname = draw(st.sampled_from(["", "/etc/passwd", "top/a"]))
        info.pax_headers = draw(RECORDS)
        content = draw(st.sampled_from(CONTENTS))
        info.size = len(content)
        header = info.tobuf(form, "utf-8", "surrogateescape")
        if draw(st.integers(0, 4)) == 0:
            header = resized(header, draw(st.sampled_from([-512, -1, 0, 1, 1 << 40, 1 << 62])))
        parts.append(header + content + bytes(-len(content) % 512))
    content = b"".join(parts)
    content = draw(mutated(content)) if draw(st.booleans()) else content
    return gzip.compress(content, 1) if draw(st.booleans()) else content


def resized(header: bytes, size: int) -> bytes:
    """The last block of a tar header with another size (in the form that allows for negative ones) and its checksum."""
    block = bytearray(header[-512:])
    block[124:136] = bytes([128 if size >= 0 else 255]) + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return header[:-512] + bytes(block)


def circle() -> bytes:
    """A member of negative size, after which `tarfile` would read the same header for ever."""
    return resized(tarfile.TarInfo("top/a").tobuf(), -512) + bytes(2048)


def read_all(path: Path) -> int:
    with open_raw(path, ARCHIVE) as files:
        folders = {"", *files._folders}
        names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in files.listing(folder)]
        return sum(len(files.read(name, 1 << 20)) for name in names)


def test_fuzzed_tars(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "archive.tar"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: read_all(path), "archive.tar")
        assert tree(tmp_path) == {path}

    fuzz(check, tars(), few=150, many=2000, examples=[b"", circle(), gzip.compress(circle())])


def test_fuzzed_class_tars(tmp_path: Path, fuzz: Any) -> None:
    path, target = tmp_path / "archive.tar", tmp_path / "raw/train"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: extract_class_tars(path, target, None, quiet), "archive.tar")
        outside = [found for found in tree(tmp_path) - {path, target.parent, target} if target not in found.parents]
        assert outside == []
        assert not any(found.is_symlink() for found in tree(target))
        for found in sorted(tree(target), reverse=True):  # the next one starts anew
            found.rmdir() if found.is_dir() else found.unlink()

    inner = [tar_bytes({name: b"1"}) for name in ("a.JPEG", "../a", "/a", ".", "b/c", "\u2028")]
    seeds = [
        tar_bytes({"n00000001.tar": content, name: content}) for content in inner for name in ("..tar", "...tar", "x")
    ]
    fuzz(check, st.one_of(mutated(*seeds), tars()), few=100, many=1000, examples=seeds)


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for _ in range(draw(st.integers(1, 3))):
            name = draw(NAMES).encode("utf-8", "replace").decode()
            info = zipfile.ZipInfo(name or "x")
            info.external_attr = draw(st.sampled_from([0o100644, 0o120777, 0o040755, 0])) << 16
            info.compress_type = draw(st.sampled_from([0, 8, 12, 14]))
            file.writestr(info, draw(st.sampled_from([b"", bytes(600), bytes(1 << 18)])))
    content = buffer.getvalue()
    return draw(mutated(content)) if draw(st.booleans()) else content


def test_fuzzed_zips(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "archive.zip"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: read_all(path), "archive.zip")
        assert tree(tmp_path) == {path}

    fuzz(check, zips(), few=120, many=1500, examples=[b"", b"PK\5\6" + bytes(18)])


# --- images and lists -------------------------------------------------------------------------------------------------


def picture(mode: str, form: str, size: tuple[int, int] = (9, 7)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, form)
    return buffer.getvalue()


PICTURES = [
    *(picture(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(picture(mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    *(picture("RGB", form) for form in ("GIF", "BMP", "TIFF", "EPS", "PPM")),
]


def test_fuzzed_images(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "x.JPEG"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: decode_image(path, str(path)), "x.JPEG")
        assert isinstance(result, DataError) or (result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3)

    fuzz(check, mutated(*PICTURES), few=150, many=2000, examples=[*PICTURES, b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"])


def test_fuzzed_lists_of_tiny_imagenet(tmp_path: Path, fuzz: Any) -> None:
    folder = write_tiny(tmp_path / "raw")
    files = FolderFiles(folder, "jpeg")
    for name in ("wnids.txt", "val/val_annotations.txt"):
        good = (folder / name).read_bytes()

        def check(content: bytes, name: str = name) -> None:
            (folder / name).write_bytes(content)
            outcome(lambda: list(tiny_imagenet.parse(tiny_source(), files)), str(folder))

        outside = good.replace(WNIDS[0].encode(), b"../../secret")
        fuzz(check, mutated(good), few=25, many=250, examples=[b"", outside, b"\xff" * 10])
        (folder / name).write_bytes(good)


def test_fuzzed_labels_of_imagenet(tmp_path: Path, fuzz: Any) -> None:
    write_imagenet(tmp_path / "imagenet/raw", WNIDS, flat_val=True)
    path = tmp_path / "imagenet/raw/LOC_val_solution.csv"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: run(imagenet_source(), tmp_path), str(tmp_path))
        if not isinstance(result, DataError):
            assert result["test"].labels.tolist() == [0, 1, 2]
            (result.folder / "manifest.json").unlink()

    fuzz(check, mutated(good), few=30, many=300, examples=[b"", good.replace(b",", b"," + b"x" * 200_000), b'"\0'])


# --- the prepared form ------------------------------------------------------------------------------------------------


def use(root: Path, source: Any) -> None:
    prepared = load_prepared(source, root)
    for name in prepared:
        split = prepared[name]
        labels = split.labels
        images = split.paths if source.streamed else split.images
        assert len(labels) == len(images) == len(split)
        assert -1 <= labels.min() <= labels.max() < source.num_classes


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_fuzzed_manifests(tmp_path: Path, fuzz: Any, name: str) -> None:
    source = cifar_source("cifar10") if name == "cifar10" else imagenet_source()
    if name == "cifar10":
        write_cifar(name, "binary", tmp_path / "cifar10/raw")
    else:
        write_imagenet(tmp_path / "imagenet/raw", WNIDS)
    prepared = run(source, tmp_path)
    path = prepared.folder / "manifest.json"
    good, text = prepared.manifest, path.read_bytes()

    def check(content: dict[str, Any] | bytes) -> None:
        path.write_bytes(content if isinstance(content, bytes) else as_json(content).encode())
        outcome(lambda: use(tmp_path, source), str(prepared.folder))

    halved = copy.deepcopy(good)
    halved["splits"]["train"].pop("raw", None)
    fuzz(check, changed(good), few=80, many=1000, examples=[{}, {"format": 1, "benchmark": name}, halved])
    fuzz(check, mutated(text), few=40, many=300, examples=[b"[" * 100_000, b"\xff"])


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_fuzzed_arrays(tmp_path: Path, fuzz: Any, kind: str) -> None:
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    source = cifar_source("cifar10")
    path = run(source, tmp_path).folder / f"test-{kind}.npy"
    good = path.read_bytes()
    head = good[:128]

    def check(content: bytes) -> None:
        path.write_bytes(content[: len(good)].ljust(len(good), b"\0"))  # or its size betrays it
        outcome(lambda: use(tmp_path, source), path.name)

    sizes = head.replace(b"(10,", b"(99999999999999,")[:127] + b"\n"
    pickled = head.replace(b"'<i8'", b"'|O'").replace(b"'|u1'", b"'|O'").ljust(127)[:127] + b"\n"
    examples = [head[:10] + b"(" * 118, sizes, pickled, b"PK\3\4", pickle.dumps([1])]
    fuzz(check, mutated(head).map(lambda start: start + good[128:]), few=60, many=600, examples=examples)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_fuzzed_encoders(tmp_path: Path, fuzz: Any) -> None:
    spec = tiny_spec()
    path, encoder = tmp_path / "encoder.safetensors", build_encoder(spec, 0)
    save_encoder(path, encoder, spec, "sha256:x")
    good = path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    head = json.loads(good[8:length])

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: load_encoder(path, encoder, spec), path.name)

    def assembled(head: Any) -> bytes:
        text = as_json(head).encode()
        return len(text).to_bytes(8, "little") + text + good[length:]

    deep = {**head, "__metadata__": {"wmse": "[" * 100_000}}
    examples = [b"", assembled({}), assembled(deep), assembled({**head, "__metadata__": {"wmse": "[1]"}})]
    fuzz(check, mutated(good[:length]).map(lambda start: start + good[length:]), few=60, many=500)
    fuzz(check, changed(head).map(assembled), few=60, many=500, examples=examples)


def test_fuzzed_records_of_a_training(
    tmp_path: Path, data: ArrayDataset, fuzz: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, runtime = tiny_spec(epochs=1, lr_drops=[]), Runtime(torch.device("cpu"))
    pretrain(make_job(spec, data, tmp_path, runtime))
    path = tmp_path / "pretrain.json"
    text = path.read_bytes()
    features = (torch.zeros(200, 4), torch.zeros(60, 4))
    monkeypatch.setattr(wmse.features, "run_features", lambda *arguments: features)
    monkeypatch.setattr(
        wmse.features, "probe_features", lambda *arguments: {"linear_top1": 1.0, "linear_top5": 2.0, "knn5_top1": 3.0}
    )

    def check(content: dict[str, Any] | bytes) -> None:
        path.write_bytes(content if isinstance(content, bytes) else as_json(content, seal=True).encode())
        outcome(lambda: evaluate(make_job(spec, data, tmp_path, runtime)), path.name)

    good = json.loads(text)
    fuzz(check, changed(good), few=40, many=300, examples=[{}, {**good, "spec_hash": 5}, [], 5])
    fuzz(check, mutated(text), few=30, many=200, examples=[b"[" * 100_000, b""])


def test_fuzzed_checkpoints(tmp_path: Path, data: ArrayDataset, fuzz: Any) -> None:
    """Through the whole training, which may go on from an older one; whether it then computes the same is not asked."""
    spec, runtime = tiny_spec(epochs=1, lr_drops=[]), Runtime(torch.device("cpu"))
    pretrain(make_job(spec, data, tmp_path / "good", runtime))
    good = {path.relative_to(tmp_path / "good"): path.read_bytes() for path in (tmp_path / "good").rglob("*.pt")}
    assert good

    def check(content: bytes) -> None:
        out = tmp_path / "run"
        for path in [*out.rglob("*.pt*"), *out.rglob("*.damaged")]:
            path.unlink(missing_ok=True)
        for name in good:
            put(out / name, content)
        outcome(lambda: pretrain(make_job(spec, data, out, runtime)), "")

    fuzz(check, mutated(*good.values()), few=15, many=150, examples=[b"", pickle.dumps(Canary(tmp_path / "canary"))])
    assert not (tmp_path / "canary").exists()


def test_fuzzed_results(tmp_path: Path, fuzz: Any) -> None:
    trained = make_run(tmp_path / "runs")
    baseline = make_run(tmp_path / "runs", method="random")
    for directory in (trained, baseline):
        path = directory / "result.json"
        text = path.read_bytes()
        good = json.loads(text)

        def check(content: Any, path: Path = path) -> None:
            path.write_bytes(content if isinstance(content, bytes) else as_json(content, seal=True).encode())
            runs, out = [trained, baseline], tmp_path / "out"
            outcome(lambda: (write_tables(runs, out), write_claims(runs, out)), str(path.parent))
            outcome(lambda: verify(runs, tmp_path / "data", out))

        examples = [
            {**good, "preset": "\ud800"},
            {**good, "provenance": {**good["provenance"], "hardware": {"gpu": ["x"]}}},
            {**good, "evaluation": {"wall_seconds": "long"}},
            {**good, "metrics": {**good["metrics"], "linear_top1": 10**400}},
            {**good, "files": {"9" * 1000: "sha256:0", "../../elsewhere": "sha256:0"}},
        ]
        fuzz(check, changed(good), few=60, many=1500, examples=examples)
        fuzz(check, mutated(text), few=30, many=300, examples=[b"[" * 100_000, b'{"a": 1e999}'])
        path.write_bytes(text)


def test_fuzzed_histories(tmp_path: Path, fuzz: Any) -> None:
    directory = make_run(tmp_path)
    path = directory / "history.csv"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: write_claims([directory], tmp_path / "out"), path.name)
        outcome(lambda: write_plots([directory], tmp_path / "out"), path.name)

    examples = [b"", good.replace(b"0.1", b"1e308"), good.replace(b"60.0", b"nan"), good.replace(b"60.0", b"-1e300")]
    fuzz(check, mutated(good), few=1, many=40, examples=examples)


# --- configuration and command line -----------------------------------------------------------------------------------

CONFIG = {
    "preset": "cpu",
    "experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2", "wmse-4@mine"], "seeds": [0, 1]}],
    "benchmarks": ["cifar10"],
    "methods": ["wmse-2"],
    "seeds": [0],
    "parameters": {"*": {"epochs": 3, "lr_drops": [1]}, "cifar10/wmse-4": {"w_size": 128, "lr": "* 2"}},
    "variants": {"mine": {"normalize": False, "crop_scale": [0.1, 1.0]}},
    "data_root": "data",
    "results": "results",
    "download": True,
    "device": "auto",
    "threads": "auto",
    "channels_last": "auto",
    "compile": False,
    "deterministic": False,
    "container": "x.sif",
}


def usable(project: Any) -> None:
    """What the workflow does with a configuration that has been accepted."""
    for spec in project.runs:
        assert RunSpec.from_dict(json.loads(json.dumps(spec.compact()))).hash == spec.hash
        Path(project.settings["results"], spec.run).exists()


def test_fuzzed_configurations(fuzz: Any) -> None:
    def check(config: dict[Any, Any]) -> None:
        outcome(lambda: usable(load_project(config)))

    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    examples = [
        {**CONFIG, "parameters": {1: {"epochs": 3}}},
        {**CONFIG, "parameters": {"*": {2: 3}}},
        {**CONFIG, "seeds": deep},
        {**CONFIG, "results": "a\0b"},
        {**CONFIG, "results": "x" * 300},
        {**CONFIG, "data_root": "\ud800"},
        {**CONFIG, "parameters": {"*": {"lr": math.inf}}},
        {**CONFIG, "parameters": {"*": {"lr": 10**400}}},
        {**CONFIG, "parameters": {"*": {"epochs": "* " + "9" * 400}}},
        {**CONFIG, "methods": ["wmse-" + "9" * 5000]},
    ]
    fuzz(check, changed(CONFIG), few=150, many=2000, examples=examples)


@pytest.mark.parametrize("text", ["LAUGHS", "MERGES"])
def test_aliases_of_aliases_are_refused_before_they_are_written_out(
    tmp_path: Path, text: str, counts: Counter[str]
) -> None:
    counts["inputs"] += 2
    path = put(tmp_path / "config.yaml", globals()[text])
    message = str(outcome(lambda: read_yaml(path)))
    assert "config.yaml: not valid YAML: more than 100,000 values" in message
    as_snakemake_reads_it: Any = [0] * 9
    for _ in range(9):
        as_snakemake_reads_it = [as_snakemake_reads_it] * 9
    message = str(outcome(lambda: load_project({"seeds": as_snakemake_reads_it})))
    assert "configuration: more than 100,000 values" in message


def test_fuzzed_parameters(fuzz: Any) -> None:
    keys = st.sampled_from([name for name in FIELDS if name != "benchmark"])

    def check(values: dict[str, Any]) -> None:
        result = outcome(lambda: make_spec("cifar10/wmse-4", 0, [values]))
        if isinstance(result, RunSpec):
            assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()

    fuzz(check, st.dictionaries(keys, st.one_of(VALUES, NUMBERS), max_size=3), few=150, many=2000)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}], {b}: 1}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TAGS = [
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "2001-99-99",
    "!!binary é",
    "!!python/object/apply:os.system [x]",
    "!!set {a}",
]


def test_fuzzed_yaml(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "config.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: read_yaml(path), path.name)
        if not isinstance(result, WmseError):
            outcome(lambda: load_project(result))

    good = yaml.safe_dump({key: value for key, value in CONFIG.items() if key != "parameters"}).encode()
    bombs = [
        LAUGHS,
        MERGES,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "a: " + "9" * 5000,
        "\0",
    ]
    examples = [
        text.encode() for text in [*bombs, *(f"a: {tag}" for tag in TAGS), "? [a]\n: b", "1: 2", "? {a: b}\n: c"]
    ]
    fuzz(check, mutated(good, (ROOT / "config.yaml").read_bytes()), few=100, many=1000, examples=[*examples, b"\xff"])


FLAGS = [
    *("--checkpoint-seconds", "--checkpoint-epochs", "--keep-checkpoints"),
    *("--root", "--preset", "--data-root", "--device", "--threads", "--channels-last", "--compile", "--deterministic"),
    *("--watts", "--seconds", "--json", "--spec", "--out", "--log", "--only", "--jobs", "--results", "--quiet"),
    *("--no-download", "--no-progress", "--help", "--version"),
]
COMMANDS = ["prepare", "init", "runs", "estimate", "pretrain", "evaluate", "report", "dag", "selfcheck", "verify"]
ARGUMENTS = st.one_of(
    st.sampled_from(
        [".", "nowhere", "file", "folder", "/dev/full", "cifar10", "cifar10/wmse-2/seed0", "cpu", "quick", "tables"]
    ),
    st.sampled_from(
        ["0", "-1", "1", "nan", "inf", "1e9", "9" * 5000, "auto", "cuda:9", "{}", "[]", "[" * 100_000, '{"a": 1}']
    ),
    st.text(string.printable, max_size=5),
    st.sampled_from(["é", "\udcff", "\u2028", "-", "--", "=", "x" * 300]),
)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in a folder of its own, without network and without the heavy work."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise DataError("the work itself is left out")

    for name in ("build.download", "build.write_arrays", "build.write_listing", "imagenet_mini._write"):
        monkeypatch.setattr(f"wmse.datasets.{name}", refuse)
    monkeypatch.setattr("wmse.estimate.estimate_runs", refuse)
    monkeypatch.setattr("wmse.selfcheck.selfcheck", lambda *arguments: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.yaml").symlink_to(ROOT / "config.yaml")

    def check(arguments: list[str]) -> None:
        def act() -> int | None:
            try:
                return main(arguments)
            except SystemExit as end:
                return end.code

        status = outcome(act)
        captured = capsys.readouterr()
        assert status in (0, 1, 2)
        assert "Traceback" not in captured.err
        assert captured.err.count("error:") == (status != 0)
        assert len(captured.err) <= LONGEST_MESSAGE + 4 * sum(map(len, arguments))

    return check


def test_fuzzed_command_lines(commands: Any, fuzz: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    option = st.tuples(st.sampled_from(FLAGS), ARGUMENTS).map(list)
    rest = st.lists(
        st.one_of(option, st.sampled_from(FLAGS).map(lambda flag: [flag]), ARGUMENTS.map(lambda a: [a])), max_size=4
    )
    lines = st.tuples(st.sampled_from([*COMMANDS, "", "x"]), rest).map(
        lambda line: [line[0], *(word for words in line[1] for word in words)]
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GRAPH.encode())))
    examples = [
        ["prepare", "cifar11", "--log", "/dev/full"],
        ["prepare", "cifar11", "--log", "folder"],
        ["prepare", "fashion_mnist", "--data-root", "\udcff"],
        ["runs", "--root", "\udcff", "--log", "log"],
        ["estimate", "--device", "xyz"],
        ["estimate", "--threads", "1000000000"],
        ["estimate", "--threads", "-1"],
        ["estimate", "--seconds", "nan"],
        ["estimate", "--device", "cuda:99"],
        ["pretrain", "--spec", "[" * 100_000],
    ]
    fuzz(commands, lines, few=150, many=2000, examples=examples)


def test_fuzzed_specifications(commands: Any, fuzz: Any) -> None:
    good = make_spec("cifar10/wmse-4", 0).to_dict()
    outside = {"benchmark": "cifar10", "method": "wmse", "variant": "../../../../outside"}
    specs = st.one_of(changed(good), st.dictionaries(st.sampled_from(list(good)), VALUES, max_size=4))
    examples = [outside, {"benchmark": ["x"], "method": {}}, {"benchmark": "x" * 10_000, "method": "wmse"}]
    fuzz(lambda spec: commands(["pretrain", "--spec", as_json(spec)]), specs, few=100, many=1000, examples=examples)


@pytest.mark.parametrize("device", ["xyz", "meta", "cpu:3", "cuda:", "cuda:9999", "mps", "", "cuda", "\0"])
def test_devices_that_are_not_there_are_one_message(device: str, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    if not torch.cuda.is_available() or device != "cuda":
        assert isinstance(outcome(lambda: resolve(device)), WmseError)


def test_fuzzed_rule_graphs(tmp_path: Path, fuzz: Any, commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(content: bytes) -> None:
        def act() -> None:
            needs = parse_dot(content.decode("utf-8", "replace"))
            assert set(layers(needs)) == set(needs)
            assert all(direct(needs)[rule] <= needs[rule] for rule in needs)

        outcome(act)

    many = "".join(f'{i}[label = "r{i}"]\n' for i in range(45))
    dense = many + "".join(f"{i} -> {j}\n" for j in range(45) for i in range(j))
    circle = GRAPH.replace("3 -> 0", "3 -> 0\n0 -> 2")
    examples = [circle, GRAPH.replace("3 -> 0", "3 -> 9"), GRAPH.replace("3 -> 0", "0 -> 0"), dense, many * 2, ""]
    fuzz(check, mutated(GRAPH.encode()), few=100, many=1000, examples=[text.encode() for text in examples])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff" + GRAPH.encode())))
    commands(["dag"])
    assert (tmp_path / "results/plots/dag.svg").exists()
    jobs = st.dictionaries(st.sampled_from(["all", "tables", "x"]), VALUES, max_size=2)
    labels = GRAPH.replace('"tables"', '"$x^$"')
    fuzz(lambda jobs: outcome(lambda: write_dag(labels, jobs, tmp_path)), jobs, few=3, many=30)
