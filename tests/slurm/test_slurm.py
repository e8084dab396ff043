"""The shipped profile on a real Slurm: `make test-slurm`, whose run.sh starts one with three nodes and accounting.

Every case is a Snakemake of its own with the shipped profile in small. Where a training is interrupted, it must have
stopped at the very step at which the next job goes on: nothing is repeated. Its own checkpoints are ten minutes apart.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import ROOT
from builders.workflow import FOREVER, ONE_STEP, PATIENT, TINY, differing, environment, outcome, snakemake

if "WMSE_SLURM_WORK" not in os.environ:
    pytest.skip("Slurm is tested by `make test-slurm`", allow_module_level=True)

PATIENCE = 480  # Seconds; only a case that fails takes as long, or a machine with much else to do.
NO_APPTAINER = os.environ.get("WMSE_NO_APPTAINER")


def project(folder: Path, parameters: dict[str, Any], methods: tuple[str, ...] = ("wmse-2",), seeds: int = 1) -> Path:
    """A working folder with a small configuration, and the shipped profile with shorter times and fewer resources."""
    changed = {**TINY, "batch_size": 512, "probe_batch_size": 1000, **parameters}
    config = {
        "preset": "quick",
        "experiments": [{"benchmarks": ["fashion_mnist"], "methods": list(methods)}],
        "seeds": list(range(seeds)),
        "parameters": {"*": changed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(ROOT / "workflow/profiles/slurm", folder / "profile")
    (folder / "profile/settings.yaml").write_text("device: cpu\n")  # the GPUs are pretended
    changes = {"latency-wait": 10, "slurm-init-seconds-before-status-checks": 1, "seconds-between-status-checks": 1}
    small = {"runtime": 60, "mem_mb": 900}
    edit(folder, **changes, retries=1, **{"default-resources": {**small, "nodes": 1}})
    edit(folder, **{"set-resources": {"pretrain": small}})
    edit(folder, **{"set-threads": {"pretrain": 1, "evaluate": 1}})
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of the folder's profile; mappings of rules are merged."""
    path = folder / "profile/config.yaml"
    profile = yaml.safe_load(path.read_text())
    for rule, resources in changes.get("set-resources", {}).items():
        resources = {**profile["set-resources"].get(rule, {}), **resources}
        profile["set-resources"][rule] = resources
    profile.update({key: value for key, value in changes.items() if key != "set-resources"})
    path.write_text(yaml.safe_dump(profile))


# What a script starts in the background ignores Ctrl-C otherwise.
SNAKEMAKE = ["env", "--default-signal=INT", sys.executable, "-m", "snakemake"]


class Workflow:
    """A Snakemake with the folder's profile, and what it and its trainings have said."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                [*SNAKEMAKE, "--snakefile", ROOT / "workflow/Snakefile", "--workflow-profile", "profile", *arguments],
                cwd=folder,
                env=environment(PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT)), **PATIENT),
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        logs = self.folder.glob("results/runs/*/*/*/pretrain.log")
        return (self.folder / "log").read_text() + "".join(log.read_text() for log in logs)

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """All that matches, once it has appeared so often."""
        deadline = time.monotonic() + PATIENCE
        while len(found := re.findall(pattern, self.said)) < count:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, f"{pattern!r} did not appear:\n{self.said}"
            time.sleep(0.2)
        return found

    def jobs(self) -> list[str]:
        """The identifiers of the jobs that were submitted, in their order."""
        return re.findall(r"SLURM jobid (\d+)", (self.folder / "log").read_text())

    def at_work(self, count: int = 1) -> None:
        """Until so many trainings have finished their first epoch."""
        self.wait_for(r"epoch 1/", count)

    def goes_on_where_it_stopped(self) -> None:
        """After a signal of Slurm, until the training is at work again: without a step lost."""
        (stopped,) = self.wait_for(r"stopped by SIGTERM after step (\d+)")
        assert int(stopped) > 0
        assert self.wait_for(r"continuing \S+ at step (\d+) of") == [stopped]

    def trainers(self) -> list[int]:
        """The processes that train, as their locks name them."""
        locks = self.folder.glob("results/runs/*/*/*/.lock")
        return [int(re.search(r"\(pid (\d+) on", lock.read_text())[1]) for lock in sorted(locks)]


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Workflow]:
    workflow = Workflow(folder, *arguments)
    try:
        yield workflow
    finally:
        workflow.process.kill()
        workflow.process.wait()
        for job in workflow.jobs():
            slurm("scancel", "--full", "--signal=KILL", job, check=False)
            slurm("scancel", job, check=False)


def slurm(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def states(job: str) -> str:
    """The states that a job has been through, as Slurm's accounting knows them."""
    return slurm("sacct", "--noheader", "--allocations", "--duplicates", "--format=State%30", f"--jobs={job}")


def environment_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_same_bits_as_without_slurm_and_a_report_of_what_the_jobs_used(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "plain").mkdir()
    folder = project(tmp_path / "slurm", {}, ("wmse-2", "random"))
    shutil.copy(folder / "config.yaml", tmp_path / "plain")
    with running(folder) as workflow:
        done = snakemake(tmp_path / "plain", "--config", "device=cpu", "threads=1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert workflow.process.wait(PATIENCE) == 0, workflow.said
    expected = outcome(tmp_path / "plain")
    assert [name for name in expected if name.endswith("encoder.safetensors")]
    assert outcome(folder) == expected
    assert len(workflow.jobs()) == 3  # what is prepared and reported stays here
    (report,) = (folder / "results/logs/slurm").glob("efficiency_report_wmse_*.csv")
    with open(report, encoding="utf-8", newline="") as file:
        rows = {row["RuleName"].split("_")[1]: row for row in csv.DictReader(file)}
    assert set(rows) == {"pretrain", "evaluate"}
    assert float(rows["pretrain"]["MaxRSS_MB"]) > 50
    # Whoever goes on without Slurm computes nothing again.
    assert "Nothing to be done" in snakemake(folder, "--config", "device=cpu").stderr


def test_a_run_on_two_nodes_has_their_gpus_and_computes_what_one_process_does(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "plain").mkdir()
    folder = project(tmp_path / "slurm", ONE_STEP)
    shutil.copy(folder / "config.yaml", tmp_path / "plain")
    edit(folder, **{"set-resources": {"pretrain": {"slurm_partition": "pair", "gres": "gpu:2"}}})
    exact = ["--config", "channels_last=false"]  # torch's batch norm adds up a thousand times as coarsely otherwise
    with running(folder, *exact, "processes=4", "nodes=2") as workflow:
        workflow.wait_for("steps of 2 x 8192 views")
        own = environment_of(workflow.trainers()[0])
        assert (own["CUDA_VISIBLE_DEVICES"], own["WORLD_SIZE"], own["LOCAL_WORLD_SIZE"]) == ("0,1", "4", "2")
        done = snakemake(tmp_path / "plain", *exact, "device=cpu", "threads=1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert workflow.process.wait(PATIENCE) == 0, workflow.said
    (record,) = folder.glob("results/runs/*/wmse-2/*/pretrain.json")
    runtime = json.loads(record.read_text())["provenance"]["runtime"]
    assert (runtime["processes"], runtime["nodes"]) == (4, 2)
    encoders = [next(tmp_path.glob(f"{name}/results/runs/*/*/*/encoder.safetensors")) for name in ("slurm", "plain")]
    assert differing(*encoders) == []


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_each_training_gets_a_gpu_of_its_own_and_a_cancelled_workflow_saves_all(tmp_path: Path) -> None:
    folder = project(tmp_path, FOREVER, seeds=3)
    edit(folder, **{"set-resources": {"pretrain": {"gpu": 1}}})
    with running(folder) as workflow:
        workflow.wait_for(r"SLURM jobid", 3)
        workflow.at_work(2)
        own = [environment_of(process) for process in workflow.trainers()]
        assert sorted(variables["CUDA_VISIBLE_DEVICES"] for variables in own) == ["0", "1"]  # and the third job waits
        assert len({variables["SLURM_JOB_ID"] for variables in own}) == 2
        workflow.process.send_signal(signal.SIGINT)
        assert workflow.process.wait(PATIENCE) != 0
        deadline = time.monotonic() + PATIENCE
        while slurm("squeue", "--noheader", "--jobs", ",".join(workflow.jobs()), check=False):
            assert time.monotonic() < deadline, workflow.said
            time.sleep(0.5)
    assert workflow.said.count("stopped by SIGTERM after step") == 2
    assert len(list(folder.glob("results/runs/*/*/*/checkpoints/*.pt"))) == 2


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warning", ["", "--signal=TERM@30"], ids=["at the limit", "before the limit"])
def test_a_training_that_meets_its_time_limit_goes_on_in_a_new_job(warning: str, tmp_path: Path) -> None:
    folder = project(tmp_path, FOREVER)
    edit(folder, **{"set-resources": {"pretrain": {"slurm_extra": warning}}})
    with running(folder) as workflow:
        workflow.at_work()
        # The limit comes to the job, however long this machine took to start it; a warning needs 30 to 60 s of it left.
        (job,) = workflow.jobs()
        minutes = int(slurm("squeue", "--noheader", "--format=%M", f"--jobs={job}").split(":")[-2])
        slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2 if warning else 1}")
        workflow.goes_on_where_it_stopped()
        first, second = workflow.jobs()
        assert states(first) == ("FAILED" if warning else "TIMEOUT")
        assert states(second) == "RUNNING"


def preempt(workflow: Workflow) -> None:
    """Slurm wants the training's only core for a job of more importance."""
    slurm("sbatch", "--partition=high", "--time=1", "--output=/dev/null", "--wrap=sleep 1")


def requeue(workflow: Workflow) -> None:
    slurm("scontrol", "requeue", workflow.jobs()[0])


@pytest.mark.parametrize(("partition", "interrupt"), [("main", requeue), ("low", preempt)])
def test_a_job_that_slurm_queues_again_goes_on_without_a_retry(
    partition: str, interrupt: Callable[[Workflow], None], tmp_path: Path
) -> None:
    folder = project(tmp_path, FOREVER)
    edit(folder, retries=0, **{"set-resources": {"pretrain": {"slurm_partition": partition}}})
    with running(folder) as workflow:
        workflow.at_work()
        interrupt(workflow)
        workflow.goes_on_where_it_stopped()
        assert len(workflow.jobs()) == 1


def test_errors_fail_again_at_once_a_refused_job_ends_nothing_else_and_all_of_it_is_said(tmp_path: Path) -> None:
    folder = project(tmp_path, {}, ("wmse-2", "random"))
    edit(folder, **{"set-resources": {"evaluate": {"mem_mb": 10**9}}})
    runs = subprocess.run(["wmse", "runs"], cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    damaged = folder / "results/runs" / runs.stdout.split()[0] / "checkpoints/step-000000001-0000000000000000.pt"
    damaged.parent.mkdir(parents=True)
    damaged.touch()
    with running(folder) as workflow:
        assert workflow.process.wait(PATIENCE) == 1
    assert workflow.said.count("SLURM sbatch failed") == 2  # the evaluation of the baseline, and its retry
    assert len(workflow.jobs()) == 2  # of the training, all the same
    assert workflow.said.count("no checkpoint is intact") >= 2
    assert [states(job) for job in workflow.jobs()] == ["FAILED", "FAILED"]
    assert "Traceback" not in workflow.said


# --- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container of this system's programs and this environment: a folder, for no image need be built."""
    folder = tmp_path / "container"
    for name in ("usr", "tmp", "proc", "sys", "dev", "etc", "root", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    places = {"/usr", "/etc", sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1]), str(ROOT)}
    monkeypatch.setenv("APPTAINER_BIND", ",".join(sorted(places)))
    monkeypatch.setenv("APPTAINERENV_PREPEND_PATH", str(Path(sys.executable).parent))
    for name in PATIENT:
        monkeypatch.setenv(f"APPTAINERENV_{name}", PATIENT[name])
    monkeypatch.setenv("APPTAINERENV_PYTHONPATH", os.environ.get("PYTHONPATH", str(ROOT)))
    return folder


@pytest.mark.skipif(bool(NO_APPTAINER), reason=f"APPTAINER NOT TESTED: {NO_APPTAINER}")
def test_a_training_in_a_container_knows_its_gpu_and_hears_the_signal(tmp_path: Path, container: Path) -> None:
    folder = project(tmp_path, FOREVER)
    edit(folder, **{"set-resources": {"pretrain": {"gpu": 1, "slurm_partition": "other"}}})
    with running(folder, "--use-singularity", "--config", f"container={container}") as workflow:
        workflow.at_work()
        own = environment_of(workflow.trainers()[0])
        assert own["APPTAINER_CONTAINER"] == str(container)
        assert own["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        assert own["SLURM_JOB_ID"] == workflow.jobs()[0]
        assert "SLURM_JOB_NAME" not in own  # as `--cleanenv` has it
        slurm("scancel", "--signal=TERM", workflow.jobs()[0])
        workflow.goes_on_where_it_stopped()
        assert len(workflow.jobs()) == 2
