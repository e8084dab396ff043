"""SIGKILL at any moment: what lies there is whole, the next call goes on, and the results have the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from builders.forked import KillPoints, Reference, SharedCount, start, wait
from builders.runs import tiny_spec
from wmse.datasets import load, prepare
from wmse.errors import DataError
from wmse.runs.folder import CHECKPOINTS
from wmse.training import CheckpointPolicy

POLICY = CheckpointPolicy(seconds=1e9, epochs=1, keep=1)
STEPS, STEPS_PER_EPOCH = 6, 3


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny_spec(epochs=2, eval_every=1), tmp_path_factory.mktemp("reference"))


def finish(reference: Reference, folder: Path, log: Path) -> int:
    """Let the job end undisturbed, compare everything; returns the steps that it took."""
    steps = SharedCount()
    assert wait(start(lambda: reference.job(folder, POLICY, steps), log)) == 0, log.read_text()
    reference.assert_same(folder)
    assert (folder / "result.json").exists()
    assert len(list((folder / CHECKPOINTS).iterdir())) == POLICY.keep  # and nothing that a killed writer left
    assert not [path for path in folder.glob(".*.tmp") if "result.json" not in path.name]
    return steps.value


def test_killed_at_every_moment_around_its_writes(
    reference: Reference, tmp_path: Path, long: bool, counts: Counter[str]
) -> None:
    """Pretraining and evaluation; each moment in a folder of its own, and then the job goes on to its end.

    The fast part takes the moments in the middle of a write.
    """
    kills, log = 0, tmp_path / "log"
    for n in range(1, 1000):
        folder, steps = tmp_path / str(n), SharedCount()

        def job(folder: Path = folder, steps: SharedCount = steps, n: int = n) -> None:
            KillPoints(folder, n, everywhere=long).install()
            reference.job(folder, POLICY, steps)

        status = wait(start(job, log))
        saved = reference.assert_whole(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()
        kills += 1
        counts["kills"] += 1
        assert steps.value - saved <= STEPS_PER_EPOCH
        assert finish(reference, folder, log) == STEPS - saved
    assert kills >= (80 if long else 7), "the moments are not found"


def test_killed_again_and_again_in_one_folder(
    reference: Reference, tmp_path: Path, long: bool, counts: Counter[str]
) -> None:
    """At random moments of steps and evaluation: every session is killed after some steps and some milliseconds."""
    chance, log = random.Random(0), tmp_path / "log"
    for attempt in range(10 if long else 1):
        folder, saved = tmp_path / f"run{attempt}", 0
        for _ in range(6):
            steps = SharedCount()
            pid = start(lambda folder=folder, steps=steps: reference.job(folder, POLICY, steps), log)
            wanted, pause = chance.randint(0, STEPS - saved), chance.uniform(0, 0.1)
            deadline = time.monotonic() + 60
            while steps.value < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(pause)
            os.kill(pid, signal.SIGKILL)
            status = wait(pid)
            assert status in (0, -signal.SIGKILL), log.read_text()  # 0: it was faster
            counts["kills"] += status != 0
            before, saved = saved, reference.assert_whole(folder)
            assert saved >= before
            assert before + steps.value - saved <= STEPS_PER_EPOCH
        assert finish(reference, folder, log) == STEPS - saved


def test_a_preparation_killed_at_every_moment_around_its_writes(
    tmp_path: Path, long: bool, counts: Counter[str]
) -> None:
    digest, log = prepare("fashion_mnist", tmp_path / "reference", log=str).digest, tmp_path / "log"
    root, kills = tmp_path / "data", 0
    for n in range(1, 1000):

        def job(n: int = n) -> None:
            KillPoints(root, n, everywhere=long).install()
            prepare("fashion_mnist", root, log=str)

        status = wait(start(job, log))
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()
        kills += 1
        counts["kills"] += 1
        try:
            load("fashion_mnist", root, verify=True)
        except DataError:
            assert not (root / "fashion_mnist/prepared/manifest.json").exists()
        else:
            break  # the last moments, when all is written
    prepared = prepare("fashion_mnist", root, log=str)
    prepared.verify()
    assert prepared.digest == digest
    assert kills >= (20 if long else 2)
    assert not list(prepared.folder.glob(".*.tmp"))
