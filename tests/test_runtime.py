"""How a run is computed: the choices left on "auto", and which GPU a process gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wmse.errors import ConfigError
from wmse.runtime import claim_gpu, resolve

CLAIM = "import sys; from pathlib import Path; from wmse.runtime import claim_gpu\n"
CLAIM += "print(claim_gpu(int(sys.argv[2]), Path(sys.argv[1])), flush=True); sys.stdin.readline()"


def claimant(folder: Path, count: int = 3, visible: str = "") -> tuple[subprocess.Popen[str], int]:
    """A process that claims one of `count` GPUs until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder), str(count)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": visible},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_processes_claim_different_gpus_and_release_them_when_killed(tmp_path: Path) -> None:
    first, second = claimant(tmp_path), claimant(tmp_path)
    try:
        assert (first[1], second[1]) == (0, 1)
        assert claim_gpu(2, tmp_path) == 0  # all taken: shared
        first[0].kill()
        first[0].wait()
        assert claim_gpu(3, tmp_path) == 0
    finally:
        for process, _ in (first, second):
            process.kill()
            process.communicate()


def test_a_claim_is_on_the_gpu_that_is_visible_not_on_its_number(tmp_path: Path) -> None:
    claimants = [claimant(tmp_path, 2, visible) for visible in ("2,3", "0,1", "2,3", "GPU-5f/0,1")]
    claimants += [claimant(tmp_path, 4), claimant(tmp_path, 1, "1")]
    try:
        # Physical 2, 0, 3 and a name; the fifth finds only 1 free, and the last shares it, as it sees no other.
        assert [index for _, index in claimants] == [0, 0, 1, 0, 1, 0]
    finally:
        for process, _ in claimants:
            process.kill()
            process.communicate()


def test_asking_for_a_gpu_where_there_is_none_is_one_message() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        resolve(device="cuda")


def test_float32_means_float32() -> None:
    resolve("cpu", "fp32")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_the_threads_are_set_and_recorded() -> None:
    assert resolve("cpu", "fp32", threads=1).describe()["threads"] == torch.get_num_threads() == 1
