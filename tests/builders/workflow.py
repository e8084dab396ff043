"""The workflow of this project in a real Snakemake, and a configuration for it that takes seconds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from builders import ROOT

TIMED = ("ms_per_step",)  # rows of tables that no two runs have in common

# 8-pixel views of a narrow network: a step takes milliseconds, through the same code as the paper's recipe.
TINY: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "embedding": 8,
    "w_size": 32,
    "width": 4,
    "head_hidden": 16,
    "view_size": 8,
    "eval_resize": 8,
    "warmup_iterations": 3,
    "lr_drops": [1],
    "eval_every": 2,
    "eval_every_final": 1,
    "probe_epochs": 5,
    "probe_batch_size": 50,
    "precision": "fp32",
}

# One step that replaces each tensor of the encoder by its gradient, at the tensor's own norm: LARS with one over its
# trust coefficient as its rate. More steps, or Adam's, make much of differences that are nothing but rounding.
ONE_STEP: dict[str, Any] = {
    "epochs": 1,
    "lr_drops": [],
    "warmup_iterations": 0,
    "width": 8,
    "batch_size": 8192,
    "w_iter": 1,
    "optimizer": "lars",
    "lr": 1000.0,
}

# A training that is there to be stopped: at a rate at which nothing that it learns can end it earlier.
FOREVER: dict[str, Any] = {"epochs": 100_000, "eval_every": 100_000, "eval_every_final": 100_000, "lr": 1e-6}

# On a busy machine, threads that spin at every barrier of such tiny networks take each other's time.
PATIENT = {"GOMP_SPINCOUNT": "1000"}


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the commands of this virtual environment first, and some more variables."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in `folder`, with this project's workflow and the command `wmse` of this environment."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment(**PATIENT), capture_output=True, text=True, timeout=800
    )


def differing(found: Path, expected: Path) -> list[str]:
    """The tensors of two encoders after ONE_STEP that differ by more than rounding does, which is some 0.3 %."""
    other = load_file(found)
    tensors = {name: x for name, x in load_file(expected).items() if x.is_floating_point()}
    return [name for name, x in tensors.items() if (other[name] - x).norm() > 0.02 * x.norm()]


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs of one configuration have in common: weights, accuracies, tables; not times and dates."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("results/runs/*/*/*/*")):
        if path.name == "encoder.safetensors":
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.name == "result.json":
            content = json.loads(path.read_text())
            found[content["run"]] = {key: content[key] for key in ("metrics", "spec_hash", "data")}
            found[content["run"]]["encoder"] = content["files"].get("encoder.safetensors")
    for path in sorted(folder.glob("results/tables/*.csv")):
        if path.name != "provenance.csv":
            with open(path, encoding="utf-8", newline="") as file:
                found[path.name] = [row for row in csv.DictReader(file) if row.get("metric") not in TIMED]
    return found
