"""A run on several processes is the same run: losses, gradients, statistics and parameters, for every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.processes import run_world
from builders.runs import Double, make_job, tiny_spec
from golden import LABELS
from wmse.config import RunSpec
from wmse.datasets import ArrayDataset
from wmse.distributed import ALONE, World
from wmse.training import Trainer

STEPS, BATCH = 5, 128
# The rates are small, lest the steps scale up rounding: a tiny network that learns fast is chaotic. A relative error of
# 1e-6 in an update still shows in the parameters.
TOLERANCE, RATE = 1e-11, 1e-5
# With LARS as on ImageNet, beside every method and ablation with Adam.
CASES: dict[str, dict[str, Any]] = {
    **{label: {} for label in LABELS},
    "wmse-4 gathered": {"w_size": 128},  # one sub-batch, which nobody can have alone
    "wmse-4 lars": {"optimizer": "lars", "schedule": "cosine", "lr": 100 * RATE},
}


def case_spec(case: str) -> RunSpec:
    """Of sixteen sub-batches, four where they are four times as large: one for each of four processes."""
    sizes = {"batch_size": BATCH, "w_size": 8, "embedding": 4, "lr": RATE}
    return tiny_spec(case.split()[0], epochs=3, lr_drops=[], **{**sizes, **CASES[case]})


def take_steps(case: str, data: ArrayDataset, folder: Path, world: World) -> list[dict[str, torch.Tensor]]:
    """After the first and the last step: its loss, its gradients, the running statistics and the parameters."""
    runtime = replace(Double(torch.device("cpu")), world=world)
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(make_job(case_spec(case), data, folder, runtime))
    finally:
        torch.set_default_dtype(torch.float32)
    states = []
    for index in (torch.arange(STEPS * BATCH) % len(data["train"])).split(BATCH):
        loss = torch.as_tensor(world.mean(trainer.step(index).loss.detach()))
        named = trainer.method.named_parameters()
        gradients = {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}
        state = {"loss": loss, **gradients, **trainer.method.state_dict()}
        states.append({name: value.clone() for name, value in state.items()})
    return [states[0], states[-1]]


def decides(case: str, name: str) -> bool:
    """Whether the loss depends on a tensor, whose gradient is otherwise rounding around zero, which Adam scales up.

    It does not on biases of the heads, which batch norm or whitening takes away again, nor on the scale of SimCLR's
    last batch norm where its output is whitened.
    """
    network, _, rest = name.removeprefix("gradient of ").partition(".")
    if network == "head" and rest == "4.weight" and "short-whitened" in case:
        return False
    return not (name.endswith("bias") and network in ("head", "predictor", "target"))


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The length of the difference as a share of the tensor's own, so that a wrong factor shows whatever the scale."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-300)).item()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_every_method_and_ablation_takes_the_steps_of_one_process(
    processes: int, data: ArrayDataset, tmp_path: Path
) -> None:
    def work(world: World) -> None:
        found = {case: take_steps(case, data, tmp_path, world) for case in CASES}
        torch.save(found, tmp_path / f"{world.rank}.pt")

    run_world(processes, work, tmp_path / "log")
    wanted = {case: take_steps(case, data, tmp_path, ALONE) for case in CASES}
    differ = {
        f"{case}: {name} after {'one step' if step == 0 else 'five'}": distance
        for rank in range(processes)
        for case, states in torch.load(tmp_path / f"{rank}.pt").items()
        for step in range(2)
        for name, value in wanted[case][step].items()
        if decides(case, name) and (distance := apart(states[step][name], value)) > TOLERANCE
    }
    assert differ == {}
