"""Downloads against a local server that misbehaves in the ways that public hosts do."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from wmse.datasets import SOURCES
from wmse.datasets.build import prepare_source
from wmse.datasets.download import ATTEMPTS, DownloadError, download
from wmse.datasets.source import Archive
from wmse.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
WRONG = bytes(len(CONTENT))


class Server:
    """Answers each request with the next of `script`, the last one for ever; records paths and Range headers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.script: dict[str, list[Callable[[BaseHTTPRequestHandler], None]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                steps = outer.script[self.path]
                (steps.pop(0) if len(steps) > 1 else steps[0])(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def serve(self, path: str, *steps: Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.script[path] = list(steps)
        return self.url(path)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def whole(content: bytes = CONTENT, kind: str = "application/gzip", cut: int | None = None, ranges: bool = True):
    """Send `content`, honouring ranges if `ranges`; with `cut`, close after that many bytes of the answer."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(asked[1]) if asked and ranges else 0
        if start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if asked and ranges else 200)
        if asked and ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][:cut])

    return answer


def status(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: request.send_error(code)


def silence(seconds: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send the header and a little, then nothing."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[:1000])
        request.wfile.flush()
        threading.Event().wait(seconds)

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def fetch(tmp_path, naps):
    """Call `download` on some addresses; the target is tmp_path/file.tar.gz."""

    def run(*urls: str, **options: object):
        target = tmp_path / "file.tar.gz"
        archive = Archive(target.name, len(CONTENT), f"md5:{hashlib.md5(CONTENT).hexdigest()}", urls, "", "", {})
        download(archive, target, progress=False, log=lambda line: None, sleep=naps.append, **options)
        assert target.read_bytes() == CONTENT
        assert not part(tmp_path).exists()

    return run


def part(folder):
    return folder / "file.tar.gz.part"


def test_plain_download(server, fetch, naps):
    fetch(server.serve("/a", whole()))
    assert server.requests == [("/a", None)]
    assert naps == []


def test_a_cut_connection_is_resumed_where_it_ended(server, fetch, naps):
    fetch(server.serve("/a", whole(cut=100_000), whole(cut=50_000), whole()))
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert len(naps) == 2


def test_an_earlier_run_is_resumed(server, fetch, tmp_path):
    part(tmp_path).write_bytes(CONTENT[:123_456])
    fetch(server.serve("/a", whole()))
    assert server.requests == [("/a", "bytes=123456-")]


def test_a_complete_part_needs_no_request(server, fetch, tmp_path):
    part(tmp_path).write_bytes(CONTENT)
    fetch(server.serve("/a", whole()))
    assert server.requests == []


@pytest.mark.parametrize("leftover", [WRONG[:1000], WRONG, WRONG + b"more"], ids=["short", "whole", "long"])
def test_a_wrong_part_of_an_earlier_run_costs_one_more_request(server, fetch, tmp_path, leftover):
    part(tmp_path).write_bytes(leftover)
    fetch(server.serve("/a", whole()))
    assert server.requests[-1] == ("/a", None)


def test_a_server_that_ignores_ranges_restarts_the_file(server, fetch):
    fetch(server.serve("/a", whole(cut=100_000), whole(ranges=False)))
    assert server.requests[1] == ("/a", "bytes=100000-")


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_passing_failures_are_retried_with_growing_waits(server, fetch, naps, code):
    fetch(server.serve("/a", status(code), status(code), whole()))
    assert naps == [1.0, 2.0]


def test_attempts_are_limited(server, fetch, naps):
    with pytest.raises(DownloadError, match=f"HTTP 503.*{ATTEMPTS} tries"):
        fetch(server.serve("/a", status(503)))
    assert len(server.requests) == ATTEMPTS
    assert naps == [1.0, 2.0, 4.0]


def test_progress_does_not_use_up_attempts(server, fetch, monkeypatch):
    monkeypatch.setattr("wmse.datasets.download._PROGRESS", 10_000)
    fetch(server.serve("/a", *[whole(cut=20_000)] * 10, whole()))
    assert len(server.requests) == 11


def test_a_server_that_always_cuts_and_ignores_ranges_is_given_up(server, fetch, monkeypatch):
    monkeypatch.setattr("wmse.datasets.download._PROGRESS", 10_000)
    with pytest.raises(DownloadError, match="the connection ended"):
        fetch(server.serve("/a", whole(cut=20_000, ranges=False)))
    assert len(server.requests) <= ATTEMPTS + 1


def test_a_stalled_connection_times_out_and_resumes(server, fetch):
    fetch(server.serve("/a", silence(3.0), whole()), stall=0.2)
    assert server.requests[1] == ("/a", "bytes=1000-")


def test_missing_file_goes_to_the_mirror_at_once(server, fetch, naps):
    fetch(server.serve("/a", status(404)), server.serve("/b", whole()))
    assert [path for path, _ in server.requests] == ["/a", "/b"]
    assert naps == []


def test_the_mirror_continues_what_the_first_server_began(server, fetch):
    fetch(server.serve("/a", whole(cut=100_000), status(404)), server.serve("/b", whole()))
    assert server.requests[-1] == ("/b", "bytes=100000-")


def test_html_page_is_refused(server, fetch, tmp_path):
    with pytest.raises(DownloadError, match="HTML page"):
        fetch(server.serve("/a", whole(b"<html>log in</html>", kind="text/html; charset=utf-8")))
    assert not part(tmp_path).exists()


def test_wrong_size_is_refused_before_the_transfer(server, fetch, tmp_path):
    with pytest.raises(DownloadError, match="offers 12 bytes, expected 300,000"):
        fetch(server.serve("/a", whole(b"another file")))
    assert not part(tmp_path).exists()


def test_wrong_checksum_names_file_expected_and_found(server, fetch, tmp_path):
    with pytest.raises(DownloadError) as failure:
        fetch(server.serve("/a", whole(WRONG)))
    for expected in ("file.tar.gz", hashlib.md5(WRONG).hexdigest(), hashlib.md5(CONTENT).hexdigest()):
        assert expected in str(failure.value)
    assert not part(tmp_path).exists()
    assert not (tmp_path / "file.tar.gz").exists()
    assert len(server.requests) == 1


def test_wrong_checksum_goes_on_with_the_mirror(server, fetch):
    fetch(server.serve("/a", whole(WRONG)), server.serve("/b", whole()))
    assert server.requests[-1] == ("/b", None)


def test_offline_message_says_what_to_place_where(server, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("wmse.datasets.download.ATTEMPTS", 1)
    dead = server.url("/nothing")
    server.close()
    cifar = SOURCES["cifar100"]
    source = dataclasses.replace(
        cifar, archives=tuple(dataclasses.replace(archive, urls=(dead,)) for archive in cifar.archives)
    )
    with pytest.raises(DataError) as failure:
        prepare_source(source, tmp_path, progress=False, log=lambda line: None)
    message = str(failure.value)
    for expected in (
        str(tmp_path / "cifar100/raw/cifar-100-python.tar.gz"),
        str(tmp_path / "cifar100/raw/cifar-100-binary.tar.gz"),
        "169,001,437 bytes",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "Connection refused",
        dead,
        "wmse prepare cifar100",
    ):
        assert expected in message
