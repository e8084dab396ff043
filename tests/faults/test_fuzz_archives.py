"""Whatever a server answers and an archive or a bundle holds: files, or one clear message.

Never another exception, never a hang, nothing written outside the folder that was named.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import socket
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from builders.hostile import circle, mutated, outcome, resized, tree
from builders.raw import quiet, tar_bytes
from builders.server import CONTENT, Server, whole
from wmse.datasets.archives import extract_class_tars, open_raw
from wmse.datasets.download import download
from wmse.datasets.source import Archive
from wmse.errors import DataError
from wmse.runs.bundle import import_bundle, write_bundle
from wmse.runs.folder import RunFolder
from wmse.runs.verify import verify

# What is made here is meant to be strange; a warning about it is no finding.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


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


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_fuzzed_bundles(tmp_path: Path, finished: Path, fuzz: Any) -> None:
    """A whole run that verifies, or none."""
    run = json.loads((finished / "result.json").read_text())["run"]
    folder = RunFolder(shutil.copytree(finished, tmp_path / run))
    good = write_bundle(folder, tmp_path / "good.tar")[0].read_bytes()
    path, results = tmp_path / "bundle.tar", tmp_path / "results"
    before = tree(tmp_path) | {path, results, results / ".snakemake.lock"}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        if isinstance(outcome(lambda: import_bundle(path, results), path.name), DataError):
            assert tree(tmp_path) <= before
        else:
            assert verify([results / "runs" / run], tmp_path / "nowhere", results).problems == []
            shutil.rmtree(results)

    fuzz(check, st.one_of(mutated(good), tars()), few=60, many=1000, examples=[good, good[:-1024], good + good])
