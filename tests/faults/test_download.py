"""Downloads against a local server that misbehaves in the ways that public hosts do."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from builders import ROOT
from builders.raw import pack, write_cifar
from builders.server import CONTENT, WRONG, Server, answer, redirect, reset, silence, slowly, status, trickle, whole
from wmse.datasets import SOURCES
from wmse.datasets.build import prepare_source
from wmse.datasets.download import ATTEMPTS, DownloadError, download
from wmse.datasets.source import Archive
from wmse.errors import DataError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, counts: Counter[str]) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(counts)
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
        download(archive, target, log=lambda line: None, sleep=naps.append, **options)
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


def test_a_reset_connection_is_resumed(server, fetch):
    fetch(server.serve("/a", reset, whole()))
    assert server.requests[1] == ("/a", "bytes=100000-")


def test_a_connection_that_trickles_counts_as_dead(server, fetch):
    fetch(server.serve("/a", trickle, whole()), stall=0.3)
    assert server.requests[1][1].startswith("bytes=")


def test_a_file_that_changes_between_two_pieces_is_fetched_again_from_the_start(server, fetch):
    fetch(server.serve("/a", whole(WRONG, cut=100_000), whole()))
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", None]


def test_a_file_that_never_stops_changing_is_given_up(server, fetch):
    with pytest.raises(DownloadError, match="wrong md5"):
        fetch(server.serve("/a", *[whole(cut=100_000), whole(WRONG)] * 5))
    assert len(server.requests) == 4


@pytest.mark.parametrize(("start", "requests"), [(0, 2), (7, 3)])
def test_a_range_that_was_not_asked_for_is_never_appended(server, fetch, tmp_path, start, requests):
    part(tmp_path).write_bytes(CONTENT[:1000])
    headers = ("Content-Range", f"bytes {start}-299999/300000"), ("Content-Length", str(300_000 - start))
    fetch(server.serve("/a", status(500), answer(206, *headers, content=CONTENT[start:]), whole()))
    assert len(server.requests) == requests


@pytest.mark.parametrize("header", ["²", "9" * 5000, "-5", "many"])
def test_a_length_that_is_no_number_does_not_matter(server, fetch, header):
    def step(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: " + header.encode("latin-1") + b"\r\n\r\n" + CONTENT)

    fetch(server.serve("/a", step))


def test_a_redirect_is_followed_with_the_range(server, fetch, tmp_path):
    part(tmp_path).write_bytes(CONTENT[:1000])
    fetch(server.serve("/a", redirect(server.serve("/b", whole()))))
    assert server.requests == [("/a", "bytes=1000-"), ("/b", "bytes=1000-")]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/a", "infinite loop"),
        ("file://{secret}", "not allowed"),
        ("ftp://127.0.0.1:{port}/a", "not HTTP"),
        ("data:,x", "not allowed"),
        ("http://[bad", "invalid address"),
        ("http://xn--{long}/", "invalid address"),
    ],
)
def test_bad_redirects_are_one_message(server, fetch, tmp_path, place, message):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)  # even the right bytes are not taken from a file
    place = place.format(secret=secret, port=server.http.server_port, long="a" * 100)
    with pytest.raises(DownloadError, match=message) as failure:
        fetch(server.serve("/a", redirect(place)))
    assert "\n" not in str(failure.value).strip()
    assert not (tmp_path / "file.tar.gz").exists()


def test_retry_after_is_heeded_in_seconds_and_as_a_date(server, fetch, naps):
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    steps = [answer(503, ("Retry-After", text)) for text in ("20", later, "soon")]
    fetch(server.serve("/a", *steps, whole()))
    assert naps[0] == 20.0
    assert 8 < naps[1] <= 30
    assert naps[2] == 4.0


def test_a_server_that_wants_to_be_left_alone_for_an_hour_is_left_for_the_mirror(server, fetch, naps):
    fetch(server.serve("/a", answer(503, ("Retry-After", "3600"))), server.serve("/b", whole()))
    assert naps == []
    with pytest.raises(DownloadError, match="asks to wait 3,600 s"):
        fetch(server.url("/a"))


HABITS = {
    "cut": whole(cut=100_000),
    "reset": reset,
    "wrong": whole(WRONG),
    "cut and wrong": whole(WRONG, cut=100_000),
    "no ranges": whole(cut=100_000, ranges=False),
    "404": status(404),
    "416": status(416),
    "HTML": whole(b"<html>", kind="text/html"),
    "short": whole(CONTENT[:-1]),
    "long": whole(CONTENT + b"x"),
    "wrong range": answer(206, ("Content-Range", "bytes 7-299999/300000"), content=CONTENT[7:]),
    "no range": answer(206, content=CONTENT),
    "garbage": lambda request: request.wfile.write(WRONG),
}


@pytest.mark.parametrize("leftover", [b"", CONTENT[:50_000], WRONG[:50_000]], ids=["fresh", "resumed", "poisoned"])
@pytest.mark.parametrize("habit", HABITS)
def test_whatever_a_server_does_the_next_try_elsewhere_succeeds(server, fetch, tmp_path, habit, leftover):
    if leftover:
        part(tmp_path).write_bytes(leftover)
    with contextlib.suppress(DownloadError):  # some can be coped with; then the file is right, as `fetch` checks
        fetch(server.serve("/a", HABITS[habit]))
    (tmp_path / "file.tar.gz").unlink(missing_ok=True)
    fetch(server.serve("/b", whole()))


PREPARE = """
import os, sys
from pathlib import Path
from builders.raw import cifar_source, quiet, with_archive
from wmse.datasets.build import prepare_source
import dataclasses
root, model, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
source = with_archive(cifar_source("cifar10"), model)
archive = dataclasses.replace(next(a for a in source.archives if a.name == model.name), urls=(url,))
prepared = prepare_source(dataclasses.replace(source, archives=(archive,)), root, log=quiet)
print(prepared.digest)
"""


def test_of_two_processes_that_download_at_once_one_is_killed_and_the_other_continues(server, tmp_path, counts):
    folder = write_cifar("cifar10", "binary", tmp_path / "model")
    model = tmp_path / "cifar-10-binary.tar.gz"
    pack(folder, model)
    content = model.read_bytes()
    url = server.serve("/a", slowly(content, rate=len(content)))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", PREPARE, tmp_path / "data", model, url]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    raw = tmp_path / "data/cifar10/raw"
    partial = raw / f"{model.name}.part"

    first = subprocess.Popen(command, env=environment, **pipes)
    while not (partial.exists() and partial.stat().st_size > 10_000):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.005)
    second = subprocess.Popen(command, env=environment, **pipes)
    first.send_signal(signal.SIGKILL)
    counts["kills"] += 1
    assert first.wait() == -signal.SIGKILL
    have = partial.stat().st_size
    out, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (0, "")
    assert [asked for _, asked in server.requests] == [None, f"bytes={have}-"]
    assert sorted(path.name for path in raw.iterdir()) == [model.name]
    assert (raw / model.name).read_bytes() == content
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout == out
    assert len(server.requests) == 2


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
        prepare_source(source, tmp_path, log=lambda line: None)
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
