"""Locks, also while another process holds them and when it dies."""

from __future__ import annotations

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
from wmse.locks import exclusive_lock, lock_holder, patience, take_lock

HOST = socket.gethostname()
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


def test_a_waiting_process_says_for_whom_and_gets_the_lock_only_when_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    say = "lambda line: print(line, flush=True)"
    command = [sys.executable, "-c", HOLD.replace('run")', f'run", wait=60, say={say})'), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        try:
            with exclusive_lock(path, "me"):
                waiting = f"{path}: waiting for me (pid {os.getpid()} on {HOST})\n"
                assert process.stdout.readline() == waiting.encode()
                assert not select.select([process.stdout], [], [], 0.3)[0]  # neither the lock nor an error
            assert process.communicate(timeout=60)[0] == b"held\n"
        finally:
            process.kill()
    assert "the first run" in path.read_text()


def test_patience_ends_with_the_refusal(tmp_path: Path) -> None:
    lines: list[str] = []
    with exclusive_lock(tmp_path / "lock", "a"), pytest.raises(WmseError, match="is locked by a"):
        take_lock(tmp_path / "lock", "b", wait=0.3, say=lines.append)
    assert len(lines) == 1


def test_a_run_waits_for_its_predecessor_in_a_slurm_job_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert patience() == 0
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert patience() == 120


def test_a_preparation_waits_for_another_one_and_says_for_whom(tmp_path: Path) -> None:
    held = take_lock(tmp_path / "fashion_mnist/.prepare.lock", "wmse prepare fashion_mnist")
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        held.close()

    prepare("fashion_mnist", tmp_path, log=log)
    waiting = f"waiting for wmse prepare fashion_mnist (pid {os.getpid()} on {HOST})"
    assert lines[0] == f"{tmp_path}/fashion_mnist/.prepare.lock: {waiting}"


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
