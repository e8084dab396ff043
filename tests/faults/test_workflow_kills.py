"""Snakemake killed, stopped, and started twice: the documented command goes on, to the same results."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import ROOT
from builders.runs import TINY
from builders.workflow import PATIENT, environment, outcome, snakemake
from wmse.config import load_project
from wmse.runs.verify import verify

CONFIG: dict[str, Any] = {
    "preset": "quick",
    "device": "cpu",
    "checkpoint_seconds": 0.1,
    "experiments": [{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2", "random"]}],
    "parameters": {"*": {**TINY, "epochs": 6, "batch_size": 512, "probe_batch_size": 1000}},
}


def project(folder: Path, **parameters: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, "parameters": {"*": {**CONFIG["parameters"]["*"], **parameters}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@contextmanager
def running(folder: Path, *targets: str) -> Iterator[subprocess.Popen[bytes]]:
    """The documented command in a process group of its own, of which nothing is left afterwards."""
    command = ["snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--cores", "2", *targets]
    settings = {"cwd": folder, "env": environment(**PATIENT), "start_new_session": True}
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **settings)
    try:
        yield process
    finally:
        send(process, signal.SIGKILL)


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the whole group and wait until the last process of it has ended."""
    deadline = time.monotonic() + 120
    try:
        os.killpg(process.pid, number)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.02)
        pytest.fail(f"signal {number} did not end the group")
    except ProcessLookupError:
        process.wait()


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.glob("results/runs/*/*/*/checkpoints/*.pt")):
        assert process.poll() is None, "Snakemake ended before the moment to strike"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The outcome of a run that nothing disturbs, and the seconds it took."""
    folder = project(tmp_path_factory.mktemp("undisturbed"))
    started = time.monotonic()
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return outcome(folder), time.monotonic() - started


def test_after_a_kill_the_same_command_goes_on_and_before_it_a_second_one_is_refused(
    tmp_path: Path, counts: Counter[str]
) -> None:
    folder = project(tmp_path, epochs=3)
    run = load_project(yaml.safe_load((folder / "config.yaml").read_text())).runs[0].run
    result = f"results/runs/{run}/result.json"
    with running(folder, result) as process:
        wait_for_a_checkpoint(folder, process)
        os.killpg(process.pid, signal.SIGSTOP)  # so that it is at work however long the rest takes
        second = snakemake(folder, result)
        assert second.returncode != 0
        assert re.search(rf"results: at work here is snakemake .* \(pid {process.pid} on \S+\)", second.stderr)
        assert snakemake(folder, "--dry-run", "--config", "results=other").returncode == 0
        assert list((folder / ".snakemake/locks").iterdir())  # of the live run, whatever results others look at
        send(process, signal.SIGKILL)
        counts["kills"] += 1
        counts["faults"] += 1
    assert list((folder / ".snakemake/locks").iterdir())  # Snakemake's own, now stale
    done = snakemake(folder, result)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results: the last run here was killed; going on" in done.stderr
    assert json.loads((folder / result).read_text())["pretrain"]["resumed"] >= 1
    assert verify([], folder / "data", folder / "results").problems == []


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_a_workflow_killed_at_any_moment_goes_on_to_the_same_results(
    seed: int, undisturbed: tuple[dict[str, Any], float], tmp_path: Path, counts: Counter[str]
) -> None:
    expected, seconds = undisturbed
    generator, folder = random.Random(seed), project(tmp_path)
    for strike in range(4):
        with running(folder) as process:
            if strike == 0:  # the first time while it trains, later whenever it may be
                wait_for_a_checkpoint(folder, process)
            time.sleep(generator.uniform(0.1, 0.7) * (1 if strike == 0 else seconds))
            if process.poll() is None:
                send(process, signal.SIGTERM if strike == 1 else signal.SIGKILL)
                counts["kills"] += 1
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(folder) == expected
    assert not list(folder.glob("results/**/.*.tmp"))
    assert verify([], folder / "data", folder / "results").problems == []
    assert "Nothing to be done" in snakemake(folder).stderr


@pytest.mark.long
def test_a_training_that_outlives_its_snakemake_is_left_to_finish(
    undisturbed: tuple[dict[str, Any], float], tmp_path: Path, counts: Counter[str]
) -> None:
    folder = project(tmp_path)
    with running(folder) as process:
        wait_for_a_checkpoint(folder, process)
        os.killpg(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts["kills"] += 1
        second = snakemake(folder)
        assert second.returncode != 0
        assert re.search(r"\.lock is locked by wmse pretrain \S+ \(pid \d+ on \S+\)", second.stdout + second.stderr)
        send(process, signal.SIGCONT)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(folder) == undisturbed[0]


@pytest.mark.long
def test_one_run_at_a_time_works_in_a_results_folder_and_looking_is_free(tmp_path: Path, counts: Counter[str]) -> None:
    folder, elsewhere = project(tmp_path / "first"), project(tmp_path / "second")
    with running(folder) as process:
        wait_for_a_checkpoint(folder, process)
        os.killpg(process.pid, signal.SIGSTOP)
        holder = rf"results: at work here is snakemake --snakefile .* \(pid {process.pid} on \S+\)"

        for look in (["--dry-run"], ["--rulegraph"], ["--summary"], ["--lint"]):
            done = snakemake(folder, *look)
            assert done.returncode == 0, done.stdout + done.stderr
        for arguments in ([], ["--unlock"], []):  # whoever follows the advice to unlock does no harm
            done = snakemake(folder, *arguments)
            assert "Traceback" not in done.stderr
            assert re.search(holder, done.stderr)
            assert (done.returncode == 0) == bool(arguments), done.stderr
        done = snakemake(elsewhere, "--config", f"results={folder}/results", f"data_root={folder}/data")
        assert done.returncode != 0
        assert re.search(rf"results/\.snakemake\.lock is locked by snakemake .* \(pid {process.pid} on", done.stderr)

        run = next(folder.glob("results/runs/fashion_mnist/wmse-2/*"))
        for stage in ("pretrain", "evaluate"):
            by_hand = [sys.executable, "-m", "wmse", stage, f"fashion_mnist/wmse-2/{run.name}", "--root", str(folder)]
            own = environment(PYTHONPATH=str(ROOT))
            done = subprocess.run(by_hand, cwd=folder, env=own, capture_output=True, text=True, timeout=300)
            assert done.returncode == 1, done.stdout + done.stderr
            assert re.search(r"\.lock is locked by wmse pretrain \S+ \(pid \d+ on \S+\): wait for it", done.stderr)
        counts["faults"] += 6

        os.killpg(process.pid, signal.SIGCONT)  # undisturbed by all of this, it hears the signal
        send(process, signal.SIGTERM)
        counts["kills"] += 1
        assert process.returncode != 0
    assert "the same command continues from there" in (folder / "log").read_text()
    assert not (run / "encoder.safetensors").exists()
    assert list((run / "checkpoints").glob("*.pt"))
