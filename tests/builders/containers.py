"""The image in real engines: tests/containers/run.sh names it in IMAGE, SIF and DOCKER. Containers have no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import ROOT
from builders.workflow import environment

DOCKER, IMAGE, SIF = (os.environ.get(name, "") for name in ("DOCKER", "IMAGE", "SIF"))
HOME = "/opt/wmse-repro"
WHOLE = bool(os.environ.get("WHOLE"))
OWNER = "4321:8765"  # a user that no system knows

TINY = {
    "epochs": 2,
    "lr_drops": [1],
    "batch_size": 512,
    "width": 4,
    "head_hidden": 16,
    "embedding": 8,
    "w_size": 32,
    "view_size": 8,
    "eval_resize": 8,
    "eval_every": 2,
    "probe_epochs": 5,
    "probe_batch_size": 1000,
}
EXPERIMENTS = [
    {"benchmarks": ["fashion_mnist"], "methods": ["simclr", "wmse-4", "pixels"]},
    {"benchmarks": ["imagenet100_mini"], "methods": ["wmse-2"]},
]
NO_TRAINING = [{"benchmarks": ["fashion_mnist"], "methods": ["pixels"]}]
ONE_RUN = [{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2"]}]

Run = subprocess.CompletedProcess[str]

needs_apptainer = pytest.mark.skipif(not SIF, reason=f"APPTAINER NOT TESTED: {os.environ.get('WMSE_NO_APPTAINER')}")


def config(experiments: list[dict[str, Any]] = EXPERIMENTS, **parameters: Any) -> list[str]:
    """Snakemake's arguments for a small configuration; the same in every environment."""
    # The stem of ImageNet's encoder shrinks images to a 32nd.
    changed = {"*": {**TINY, **parameters}, "imagenet100_mini/*": {"view_size": 64, "eval_resize": 64}}
    settings = {"experiments": experiments, "parameters": changed}
    # One thread: two of a run beside those of another wait for each other by spinning, and would take minutes.
    return ["--config", "device=cpu", "threads=1", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]


def execute(command: list[str], **options: Any) -> Run:
    return subprocess.run(command, capture_output=True, text=True, timeout=3600 if WHOLE else 600, **options)


def docker(*arguments: str) -> Run:
    return execute([DOCKER, *arguments])


def succeeded(done: Run) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def in_docker(folder: Path | None, *arguments: str, options: tuple[str, ...] = (), data: bool = False) -> Run:
    """`docker run` without a network, with `folder`/results mounted; `data` mounts `folder`/data too."""
    mounts = ["-v", f"{folder}/results:{HOME}/results"] if folder else []
    mounts += ["-v", f"{folder}/data:{HOME}/data"] if data else []
    return docker("run", "--rm", "--network", "none", *mounts, *options, IMAGE, *arguments)


def snakemake(folder: Path, *arguments: str, **options: Any) -> Run:
    """Snakemake of this environment, without a network where this user may say so."""
    own = environment(**options.pop("env", {}))
    return execute([*offline(), *snakemake_command(), *arguments], cwd=folder, env=own, **options)


def snakemake_command() -> list[str]:
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--cores", "all"]


def offline() -> list[str]:
    return ["unshare", "--net"] if os.getuid() == 0 else []


def new_folder(path: Path, owner: str = "") -> Path:
    """A working folder with the project's configuration; its results and data belong to `owner`."""
    for name in ("results", "data"):
        (path / name).mkdir(parents=True)
        if owner and os.getuid() == 0:
            os.chown(path / name, *map(int, owner.split(":")))
    shutil.copy(ROOT / "config.yaml", path)
    return path


def planned(output: str) -> bool:
    """Whether a dry run announces a job."""
    if "Nothing to be done" in output:
        return False
    assert "Job stats" in output, output
    return True


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/*/result.json"))
    return {content["run"]: content for content in found}


def wait_for(value: Callable[[], str], wanted: str, seconds: float) -> str:
    """The value once it contains what is wanted, or when the time is over."""
    end = time.monotonic() + seconds
    while wanted not in (now := value()) and time.monotonic() < end:
        time.sleep(0.5)
    return now
