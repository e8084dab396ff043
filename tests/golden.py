"""Golden trajectories: the losses of a short run of every method, computed in float64 through the real trainer.

`python tests/golden.py "the reason"` writes them anew after a change that is meant to move them;
tests/training/test_golden.py accepts moved losses only together with a new reason.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from builders.data import tiny_data
from builders.runs import Double, make_job, tiny_spec
from wmse.config import experiments
from wmse.training import Trainer

FILE = Path(__file__).with_suffix(".json")
STEPS = 9
LONGER_OR_SHORTER = {"simclr@short", "wmse-4@400-epochs", "wmse-4@equal-views"}  # the same steps as without the variant
SIMCLRV2 = {"crop_first": True, "joint_batch_norm": True, "head_batch_norm": True}  # as in Table 3
LABELS = [
    *sorted(
        {label for e in experiments().values() for label in e["methods"]} - {"random", "pixels"} - LONGER_OR_SHORTER
    ),
    "wmse-4 as SimCLRv2",
]


def trajectory(label: str) -> list[float]:
    """The losses of the first steps of a tiny run, and at their end the mean feature of its encoder in eval mode.

    In float64 from the initial weights on, whose draws in float32 depend on the processor; the views do not, and so the
    numbers agree on all processors but for the order of sums: to about 1e-12 after these steps.
    """
    data = tiny_data()
    # Of three epochs, however many a variant makes of them: so that the schedule is part of the trajectory.
    label, _, as_simclrv2 = label.partition(" as ")
    spec = tiny_spec(label, epochs=3, w_size=16, lr_drops=[], **(SIMCLRV2 if as_simclrv2 else {}))
    with tempfile.TemporaryDirectory() as folder:
        runtime = Double(torch.device("cpu"))
        torch.set_default_dtype(torch.float64)
        try:
            trainer = Trainer(make_job(spec, data, Path(folder), runtime))
        finally:
            torch.set_default_dtype(torch.float32)
        order = torch.arange(STEPS * spec.batch_size) % len(data["train"])
        losses = [trainer.step(index).loss.item() for index in order.split(spec.batch_size)]
        trainer.method.encoder.eval()  # the running statistics of the batch norms decide
        views = runtime.batch(next(trainer.probe[1][0].plain()))
        return [*losses, trainer.method.encoder(views).mean().item()]


def digest(losses: dict[str, list[float]]) -> str:
    """Of the losses with the digits that all machines share."""
    rounded = {label: [f"{loss:.6g}" for loss in values] for label, values in losses.items()}
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(reason: str) -> None:
    """Compute all trajectories and add a change with its reason."""
    torch.set_num_threads(1)
    losses = {label: trajectory(label) for label in LABELS}
    changes = read()["changes"] if FILE.exists() else []
    content = {"changes": [*changes, {"reason": reason, "digest": digest(losses)}], "losses": losses}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('usage: python tests/golden.py "why the losses move"')
    write(sys.argv[1])
