"""The files of a run's folder, `results/runs/BENCHMARK/METHOD/seedN-HASH/`."""

from __future__ import annotations

import re
from pathlib import Path

ENCODER = "encoder.safetensors"
HISTORY = "history.csv"
PRETRAINED = "pretrain.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.pt")  # The step, and how its content's sha256 begins.


class RunFolder:
    """Where everything lies in the folder `path` of a run; none of it need exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoder = path / ENCODER
        self.history = path / HISTORY  # a line for each finished epoch
        self.pretrained = path / PRETRAINED  # the record of the finished pretraining
        self.result = path / RESULT  # the record of the evaluation
        self.checkpoints = path / CHECKPOINTS  # a folder, as is the next one
        self.tensorboard = path / "tensorboard"
        self.lock = path / ".lock"  # held by whoever trains or evaluates the run
