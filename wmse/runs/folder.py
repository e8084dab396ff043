"""The files of a run's folder, `results/runs/BENCHMARK/METHOD/seedN-HASH/`."""

from __future__ import annotations

import re
from pathlib import Path

ENCODER = "encoder.safetensors"
HISTORY = "history.csv"
PRETRAINED = "pretrain.json"
RESULT = "result.json"
IMPORTED = "imported.json"  # of a run that `wmse import` brought: from where
PRETRAIN_LOG = "pretrain.log"
EVALUATE_LOG = "evaluate.log"
CHECKPOINTS = "checkpoints"
RESULTS_LOCK = ".snakemake.lock"  # It lies in the folder of the results, which one Snakemake works on.
CHECKPOINT_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.pt")  # The step, and how its content's sha256 begins.


def checkpoint_name(step: int, digest: str) -> str:
    """The name that `CHECKPOINT_NAME` matches, for content with the sha256 `digest` in hexadecimal."""
    return f"step-{step:09d}-{digest[:16]}.pt"


def run_folders(results: Path) -> list[Path]:
    """The folders of all runs in the folder of the results, sorted."""
    return sorted(path for path in (results / "runs").glob("*/*/*") if path.is_dir())


class RunFolder:
    """Where everything lies in the folder `path` of a run; none of it need exist."""

    @classmethod
    def of(cls, results: Path, run: str) -> RunFolder:
        """The folder of the run with the name `run` (`RunSpec.run`) in the folder of the results."""
        return cls(results / "runs" / run)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoder = path / ENCODER
        self.history = path / HISTORY  # a line for each finished epoch
        self.pretrained = path / PRETRAINED  # the record of the finished pretraining
        self.result = path / RESULT  # the record of the evaluation
        self.checkpoints = path / CHECKPOINTS  # a folder, as is the next one
        self.tensorboard = path / "tensorboard"
        self.imported = path / IMPORTED  # from which bundle the run came, if it was not computed here
        self.pretrain_log = path / PRETRAIN_LOG  # what the workflow's jobs print, as is the next one
        self.evaluate_log = path / EVALUATE_LOG
        self.lock = path / ".lock"  # held by whoever trains or evaluates the run
