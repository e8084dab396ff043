"""Atomic writes and locks, also when the writer fails or another process holds the lock."""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wmse.datasets import prepare
from wmse.errors import DataError, WmseError
from wmse.files import (
    atomic_path,
    content_digest,
    file_digest,
    write_json,
    write_sealed_json,
    write_text,
)
from wmse.locks import exclusive_lock, lock_holder, take_lock

HOST = socket.gethostname()


def test_an_atomic_write_makes_folders_and_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new: ü"):
        write_text(target, text)
        assert target.read_bytes() == text.encode()
    assert list(target.parent.iterdir()) == [target]


def test_the_target_keeps_its_old_content_until_the_write_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": {"x": True}}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert text.startswith('{\n  "b": [')
    assert text.endswith("}\n")


def test_content_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, 1)
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert target.read_text() == "1\n"


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert file_digest(tmp_path / "x", "md5") == hashlib.md5(b"abc" * 100_000).hexdigest()


def test_a_seal_holds_for_the_content_whatever_its_layout_and_breaks_with_any_value(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "x.json", {"b": [1, 2.5, None], "a": {"x": True}})
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["sha256"] == content_digest(dict(reversed(content.items())))
    assert content["sha256"] == hashlib.sha256(b'{"a": {"x": true}, "b": [1, 2.5, null]}').hexdigest()
    content["b"][1] = 2.6
    assert content["sha256"] != content_digest(content)


HOLD = """
import sys
from pathlib import Path
from wmse.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "the first run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_refuses_a_second_process_and_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "run.lock"
    with held_elsewhere(path) as process:
        expected = rf"run\.lock is locked by the first run \(pid {process.pid} on {HOST}\): wait"
        for _ in range(2):  # the refused attempt must not have wiped the holder's name
            with pytest.raises(DataError, match=expected), exclusive_lock(path, "the second run", DataError):
                pytest.fail("the lock was given twice")


def test_a_lock_is_free_once_its_holder_died(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held_elsewhere(path) as process:
        assert lock_holder(path) == f"the first run (pid {process.pid} on {HOST})"
        process.kill()
        process.wait()
        assert lock_holder(path) is None
        with exclusive_lock(path, "me"):
            assert path.read_text().startswith("me (pid ")


def test_a_waiting_process_gets_the_lock_only_when_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    waiter = HOLD.replace("with ", 'print("asking", flush=True)\nwith ').replace('run")', 'run", wait=True)')
    command = [sys.executable, "-c", waiter, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        try:
            with exclusive_lock(path, "me"):
                assert process.stdout.readline() == b"asking\n"
                assert not select.select([process.stdout], [], [], 0.3)[0]  # neither the lock nor an error
            assert process.communicate(timeout=60)[0] == b"held\n"
        finally:
            process.kill()
    assert "the first run" in path.read_text()


def test_a_preparation_waits_for_another_one_and_says_for_whom(tmp_path: Path) -> None:
    held = take_lock(tmp_path / "fashion_mnist/.prepare.lock", "wmse prepare fashion_mnist")
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        held.close()

    prepare("fashion_mnist", tmp_path, log=log)
    assert lines[0] == f"fashion_mnist: waiting for wmse prepare fashion_mnist (pid {os.getpid()} on {HOST})"


def test_a_lock_is_released_on_leaving_even_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with pytest.raises(RuntimeError), exclusive_lock(path, "a longer name than the second one"):
        raise RuntimeError
    with exclusive_lock(path, "b"):
        assert path.read_text().startswith("b (pid ")
        with pytest.raises(WmseError, match=r"is locked by b \(pid"), exclusive_lock(path, "c"):
            pytest.fail("the lock was given twice")


def test_looking_at_a_lock_never_makes_anyone_fail_to_take_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    code = "import sys\nfrom pathlib import Path\nfrom wmse.locks import lock_holder\nprint(flush=True)\n"
    code += "while True:\n    lock_holder(Path(sys.argv[1]))\n"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(2000):
                with exclusive_lock(path, "me"):
                    pass
        finally:
            process.kill()
    assert lock_holder(path) is None


def test_shared_locks_stand_together_and_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    first, second = take_lock(path, "first", shared=True), take_lock(path, "second", shared=True)
    for file in (first, second):
        assert lock_holder(path) is not None
        with pytest.raises(WmseError, match="is locked by second"):
            take_lock(path, "third")
        file.close()
    assert lock_holder(path) is None
    take_lock(path, "third").close()
