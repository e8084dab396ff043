"""Claims on GPUs: none is shared by accident, some on purpose, and each ends with its process."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CLAIM = """
import sys
from pathlib import Path
from wmse.gpus import claim_gpu
folder, slots, *uuids = sys.argv[1:]
say = lambda line: print(line, flush=True)
say(claim_gpu(uuids, int(slots), say, Path(folder)))
sys.stdin.readline()
"""
Claimant = subprocess.Popen[bytes]


@pytest.fixture
def claimant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Claimant]]:
    """Starts a process that claims one of the GPUs, prints its index and holds it."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    processes: list[Claimant] = []

    def start(*uuids: str, slots: int = 1, **environment: str) -> Claimant:
        command = [sys.executable, "-c", CLAIM, str(tmp_path), str(slots), *uuids]
        own = {**os.environ, **environment}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=own, stdin=pipe, stdout=pipe, bufsize=0))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def says(process: Claimant) -> str:
    assert process.stdout
    return process.stdout.readline().decode().strip()


def test_processes_claim_different_gpus_by_name_and_wait_for_one_that_is_taken(
    claimant: Callable[..., Claimant],
) -> None:
    first = claimant("a", "b")
    assert says(first) == "0"
    assert says(claimant("a", "b")) == "1"
    assert says(claimant("c", "a")) == "0"  # another GPU that is number 0 to its process
    late = claimant("b", "a")
    assert says(late).startswith("waiting for one of 2 GPUs, which are all taken (gpu_slots lets runs share them): ")
    assert late.stdout
    assert not select.select([late.stdout], [], [], 1)[0]
    first.kill()  # which releases its claim
    assert says(late) == "1"


def test_slots_let_as_many_processes_share_a_gpu_and_spread_them(claimant: Callable[..., Claimant]) -> None:
    assert [says(claimant("a", "b", slots=2)) for _ in range(4)] == ["0", "1", "0", "1"]
    assert says(claimant("a", "b", slots=2)).startswith("waiting")


def test_the_gpu_of_a_slurm_job_is_its_own_and_several_are_told_apart(claimant: Callable[..., Claimant]) -> None:
    assert [says(claimant("a", SLURM_JOB_ID=job)) for job in ("1", "2")] == ["0", "0"]
    assert [says(claimant("a", "b", SLURM_JOB_ID="3")) for _ in range(2)] == ["0", "1"]
