"""Every recipe in small, on real images: the 5-nn accuracy of its encoder before and after the training.

`python tests/learning.py` runs all of it (an hour of one core) and writes results/reference/learning.csv;
tests/training/test_learning.py (`pytest --long`) runs it anew. Parameters are the recipes' own but for their scale.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from builders import ROOT
from builders.runs import CPU, make_job
from wmse.config import make_spec
from wmse.datasets import prepare
from wmse.provenance import commit, cpu_name
from wmse.training import Trainer

FILE = ROOT / "results" / "reference" / "learning.csv"
SEEDS = (0, 1)
MARGIN = 3.0  # Points of 5-nn accuracy by which the mean over the seeds has to rise.

# The scale: narrow encoders, short schedules, an embedding and sub-batches in the recipe's proportion (w_size = 2k).
SMALL = {
    "epochs": 3,
    "width": 8,
    "head_hidden": 256,
    "embedding": 16,
    "w_size": 32,
    "batch_size": 128,
    "warmup_iterations": 50,
    "lr_drops": [1],
    "view_size": 16,
    "eval_resize": 16,
    "eval_every": 1000,
    "precision": "fp32",
}
FOUR = {"batch_size": 64}
EIGHT = {"batch_size": 32, "lr": 7.5e-4}  # a quarter of the images a step, and of the rate: it collapses at more
FILES = {"epochs": 24, "view_size": 32, "eval_resize": 36, "crop_scale": [0.4, 1.0]}  # no crops of a few pixels
LARS = {**FILES, "epochs": 16, "batch_size": 32, "warmup_epochs": 2, "warmup_iterations": 0, "lr_drops": []}
SHORT = {"epochs": 15}  # of which such a run takes a fifth

CASES: dict[str, dict[str, Any]] = {
    # Adam and the step schedule
    "garments/wmse-2": {},
    "garments/wmse-4": FOUR,
    "garments/wmse-8": EIGHT,
    "garments/simclr": {},
    "garments/byol": {"target_decay": 0.9},  # which a target of so few steps can follow
    # ... and on JPEG files, with blur and the 7x7 stem
    "imagenet100_mini/wmse-4": {**FILES, **FOUR},
    # LARS and the cosine schedule on JPEG files, with blur, the 7x7 stem and ResNet-50
    "imagenet_mini/wmse-4": LARS,
    # The ablations that are meant to learn; a larger w_size is none of them (docs/learning.md)
    "garments/wmse-2@euclidean": {},
    "garments/wmse-2@w-iter-4": {},
    "garments/wmse-4@equal-views": {**FOUR, "lr_drops": []},
    "garments/simclr@short": SHORT,
    "garments/simclr@short-whitened": SHORT,
    "garments/simclr@short-whitened-unnormalized": SHORT,
}


@dataclass(frozen=True)
class Learnt:
    """A line of learning.csv: 5-nn accuracies in percent, of the encoder as it was initialised and as it is trained."""

    run: str
    seed: int
    steps: int
    views: int
    untrained: float
    trained: float
    first_loss: float
    last_loss: float


def learn(case: str, seed: int, data_root: Path) -> Learnt:
    """Train a case by the real trainer; the data of its benchmark are prepared in `data_root`."""
    cell = case.partition(" ")[0]
    spec = make_spec(cell, seed, [SMALL, CASES[case]])
    data = prepare(spec.benchmark, data_root, log=lambda line: None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(make_job(spec, data, Path(folder), CPU, progress_bar=False))
        try:
            before = trainer.knn()
            history = trainer.run()
        finally:
            trainer.close()
    last = history[-1]
    return Learnt(
        case, seed, last.step, last.views, round(before, 2), round(last.knn5_top1, 2), round(history[0].loss, 4),
        round(last.loss, 4),
    )  # fmt: skip


def write(cases: list[str]) -> None:
    """Run `cases` and write the table, a line as soon as it is there; lines of other cases stay."""
    torch.set_num_threads(1)
    revision, _ = commit()
    where = {"commit": revision, "torch": torch.__version__, "cpu": cpu_name()}
    rows = [row for row in read() if row["run"] not in cases]
    with tempfile.TemporaryDirectory() as data_root:
        for case in cases:
            for seed in SEEDS:
                rows.append({**asdict(learn(case, seed, Path(data_root))), **where})
                print(*rows[-1].values(), flush=True)
                rows.sort(key=lambda row: (list(CASES).index(row["run"]), int(row["seed"])))
                with FILE.open("w", encoding="utf-8", newline="") as file:
                    names = [*(field.name for field in fields(Learnt)), *where]
                    writer = csv.DictWriter(file, names, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


def read() -> list[dict[str, Any]]:
    """The lines of the committed table."""
    if not FILE.exists():
        return []
    with FILE.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["run"] in CASES]


def as_table(rows: list[dict[str, Any]]) -> str:
    """The lines as Markdown: a recipe each, with the accuracies of all seeds."""
    lines = ["| run | steps | 5-nn, untrained | trained | mean gain |", "|---|---|---|---|---|"]
    for case in CASES:
        own = [row for row in rows if row["run"] == case]
        before, after = ([float(row[key]) for row in own] for key in ("untrained", "trained"))
        cells = [", ".join(f"{value:.1f}" for value in values) for values in (before, after)]
        lines.append(f"| `{case}` | {own[0]['steps']} | {' | '.join(cells)} | {gain(own):+.1f} |")
    return "\n".join(lines) + "\n"


def gain(rows: list[dict[str, Any]]) -> float:
    """Points of 5-nn accuracy that the training has brought, on average."""
    return sum(float(row["trained"]) - float(row["untrained"]) for row in rows) / len(rows)


if __name__ == "__main__":
    write(sys.argv[1:] or list(CASES))
