"""The command `wmse pretrain --processes`, on one node and on two: what it computes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.runs import tiny_spec
from builders.workflow import FOREVER, ONE_STEP, PATIENT, differing, environment
from wmse.config import RunSpec
from wmse.datasets import prepare
from wmse.distributed.launch import FIRST_PORT, PORTS, launch, meeting_place
from wmse.errors import STOPPED_EXIT, ConfigError
from wmse.training.checkpoint import list_checkpoints

STEP = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    prepare("fashion_mnist", tmp_path / "data", log=lambda line: None)
    return tmp_path / "data"


def small(**changes: Any) -> RunSpec:
    sizes = {"epochs": 1, "batch_size": 512, "width": 8, "lr_drops": [], "warmup_iterations": 0}
    return tiny_spec("wmse-2", benchmark="fashion_mnist", **{**sizes, **changes})


def start(spec: RunSpec, out: Path, data_root: Path, processes: int, nodes: int = 1) -> list[subprocess.Popen[str]]:
    """The command as `srun` would start it on every node, all of which are this machine."""
    words = ["--spec", json.dumps(spec.compact()), "--out", out, "--data-root", data_root, "--device", "cpu"]
    counts = ["--processes", processes, "--nodes", nodes, "--threads", processes, "--channels-last", "false"]
    command = [sys.executable, "-m", "wmse", "pretrain", *map(str, words + counts)]
    common = {**PATIENT, **STEP, "SLURM_JOB_ID": "1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    pipe = subprocess.PIPE
    environments = [environment(**common, SLURM_NODEID=str(node)) for node in range(nodes)]
    return [subprocess.Popen(command, env=own, stdout=pipe, stderr=pipe, text=True) for own in environments]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it has said."""
    said = "".join(launcher.communicate(timeout=500))
    return launcher.returncode, said


def at_work(launcher: subprocess.Popen[str], lock: Path) -> int:
    """The first process of a run, once it trains."""
    while not (line := launcher.stdout.readline()).startswith("epoch 1/"):
        assert line, launcher.communicate()
    return int(re.search(r"\(pid (\d+) on", lock.read_text())[1])


def test_two_nodes_with_two_processes_each_compute_what_one_process_does(tmp_path: Path, data_root: Path) -> None:
    spec = small(**ONE_STEP)
    launchers = start(spec, tmp_path / "four", data_root, processes=4, nodes=2)
    assert [status for status, _ in map(end, launchers)] == [0, 0]
    (alone,) = start(spec, tmp_path / "one", data_root, processes=1)
    assert end(alone)[0] == 0
    assert differing(tmp_path / "four/encoder.safetensors", tmp_path / "one/encoder.safetensors") == []
    record = json.loads((tmp_path / "four/pretrain.json").read_text())
    runtime = record["provenance"]["runtime"]
    assert (runtime["processes"], runtime["nodes"], runtime["backend"]) == (4, 2, "gloo")
    assert record["pretrain"]["images_per_process"] == spec.batch_size // 4


def test_a_signal_to_one_node_stops_both_with_one_checkpoint(tmp_path: Path, data_root: Path) -> None:
    launchers = start(small(**FOREVER), tmp_path / "run", data_root, processes=2, nodes=2)
    at_work(launchers[0], tmp_path / "run/.lock")
    launchers[1].send_signal(signal.SIGTERM)
    (first, said), (second, silent) = map(end, launchers)
    assert (first, second) == (STOPPED_EXIT, STOPPED_EXIT)
    assert silent == ""  # the first process speaks for all
    (stopped,) = re.findall(r"stopped by SIGTERM after step (\d+)", said)
    assert [step for step, _ in list_checkpoints(tmp_path / "run/checkpoints")] == [int(stopped)]


def test_a_killed_process_ends_the_others_with_one_message(tmp_path: Path, data_root: Path) -> None:
    (launcher,) = start(small(**FOREVER), tmp_path / "run", data_root, processes=2)
    os.kill(at_work(launcher, tmp_path / "run/.lock"), signal.SIGKILL)
    status, said = end(launcher)
    assert status == 1
    assert said.count("wmse: error:") == 1
    assert "a process of the run was killed: process 0 (SIGKILL): the same command continues" in said


# --- where the processes meet -----------------------------------------------------------------------------------------


def test_every_node_knows_its_number_and_where_the_first_one_listens() -> None:
    job = {**STEP, "SLURM_NODEID": "1", "SLURM_JOB_ID": str(3 * PORTS + 7), "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    assert meeting_place(1, {}) == (0, "127.0.0.1", 0)
    assert meeting_place(2, job) == (1, "10.0.0.1", FIRST_PORT + 7)
    assert meeting_place(2, {**job, "MASTER_ADDR": "n1", "MASTER_PORT": "9"}) == (1, "n1", 9)


def test_a_step_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"3 of them need one task on each; this step of Slurm has 2 tasks on 2 nodes"
    ):
        meeting_place(3, STEP)


def test_a_job_becomes_the_srun_that_starts_the_command_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="nodes: 2 of them need a job of Slurm"):
        launch(["pretrain"], 4, 2, 8, print)

    class Replaced(Exception):
        """Instead of another program."""

    def execvp(file: str, words: list[str]) -> None:
        raise Replaced(file, *words)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("os.execvp", execvp)
    with pytest.raises(Replaced) as call:
        launch(["pretrain", "run"], 4, 2, 8, print)
    assert call.value.args[:6] == (
        "srun",
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
    )
    assert call.value.args[-4:] == ("-m", "wmse", "pretrain", "run")


def test_a_port_that_is_taken_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        variables = {**STEP, "SLURM_NODEID": "0", "SLURM_JOB_ID": "1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"nodes: cannot listen at 127\.0\.0\.1, port .*: set MASTER_PORT"):
            launch(["pretrain"], 4, 2, 8, print)
