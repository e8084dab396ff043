"""The files of a run's folder, `results/runs/BENCHMARK/METHOD/seedN-HASH/`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ENCODER = "encoder.safetensors"
HISTORY = "history.csv"
PRETRAINED = "pretrain.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
CHECKPOINT_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.pt")  # The step, and how its content's sha256 begins.


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; neither it nor any of its files need exist."""

    path: Path

    @property
    def encoder(self) -> Path:
        """The trained encoder's weights."""
        return self.path / ENCODER

    @property
    def history(self) -> Path:
        """One line per finished epoch."""
        return self.path / HISTORY

    @property
    def pretrained(self) -> Path:
        """The record of the finished pretraining."""
        return self.path / PRETRAINED

    @property
    def result(self) -> Path:
        """The record of the evaluation."""
        return self.path / RESULT

    @property
    def checkpoints(self) -> Path:
        """The folder of the training's checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / TENSORBOARD

    @property
    def lock(self) -> Path:
        """Held by whoever trains or evaluates the run."""
        return self.path / LOCK
