"""Tiny runs: specifications whose steps take milliseconds, and jobs on the CPU that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from builders.workflow import TINY
from wmse.config import RunSpec, make_spec
from wmse.datasets import ArrayDataset
from wmse.runs.folder import RunFolder
from wmse.runs.job import Job
from wmse.runtime import Runtime
from wmse.training import CheckpointPolicy, Trainer

CPU = Runtime(torch.device("cpu"), channels_last=False)
EVERY_STEP = CheckpointPolicy(seconds=0, keep=3)
TIMING = ("seconds", "views_per_second", "peak_memory_mb")  # columns of a history that measure


def tiny_spec(label: str = "wmse-2", seed: int = 0, benchmark: str = "cifar10", **overrides: Any) -> RunSpec:
    """A run of the tiny configuration."""
    return make_spec(f"{benchmark}/{label}", seed, [TINY, overrides])


def make_job(spec: RunSpec, data: Any, out: Path, runtime: Runtime = CPU, **settings: Any) -> Job:
    """A run in the folder `out` that is computed on the CPU and says nothing, unless told otherwise."""
    return Job(spec, data, RunFolder(out), runtime, **{"log": lambda line: None, **settings})


class Double(Runtime):
    """Float64 throughout, so that machines agree."""

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.double()

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def make_trainer(
    spec: RunSpec, data: ArrayDataset, out: Path, lines: list[str] | None = None, **settings: object
) -> Trainer:
    """A trainer that saves a checkpoint after every step and adds what it says to `lines`."""
    settings = {"checkpoints": EVERY_STEP, **settings}
    return Trainer(make_job(spec, data, out, log=(lines if lines is not None else []).append, **settings))
