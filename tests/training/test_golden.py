"""The committed trajectories: a refactoring must not move them, a deliberate change must say why it does."""

from __future__ import annotations

import pytest
import torch

import golden

SAME = 1e-7  # Processors differ by about 1e-12, the smallest mutation below by more than 1e-6.


@pytest.mark.parametrize("label", golden.LABELS)
def test_the_losses_are_the_committed_ones(label: str) -> None:
    committed = golden.read()["losses"]
    assert label in committed, 'a new method: run python tests/golden.py "added ..."'
    assert golden.trajectory(label) == pytest.approx(committed[label], rel=SAME), (
        'the training has changed; if that is meant, run python tests/golden.py "the reason" and commit both together'
    )


def test_every_change_of_the_losses_has_a_reason() -> None:
    content = golden.read()
    assert set(content["losses"]) == set(golden.LABELS)
    assert content["changes"][-1]["digest"] == golden.digest(content["losses"]), (
        "the losses were edited without a reason: use tests/golden.py"
    )
    assert all(change["reason"].strip() for change in content["changes"])


def test_the_trajectories_differ_and_learn() -> None:
    losses = golden.read()["losses"]
    assert len({tuple(values) for values in losses.values()}) == len(losses)
    assert all(len(values) == golden.STEPS + 1 for values in losses.values())
    assert losses["wmse-2"][-2] < losses["wmse-2"][0]


MUTATIONS = {  # a change of a thousandth where it is a number
    "temperature": ("simclr", {"temperature": 0.5 * 1.001}),
    "learning rate": ("wmse-2", {"lr": 3e-3 * 1.001}),
    "w_size": ("wmse-2", {"w_size": 32}),
    "target_decay": ("byol", {"target_decay": 0.99 * 1.001}),
    "weight_decay": ("wmse-2", {"weight_decay": 1e-6 + 1e-3}),
    "momentum of batch norm": ("wmse-2", {}),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_small_change_moves_them(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    label, changes = MUTATIONS[mutation]
    original, norm = golden.tiny_spec, torch.nn.BatchNorm2d.__init__
    monkeypatch.setattr(golden, "tiny_spec", lambda label, **given: original(label, **{**given, **changes}))
    if not changes:
        mutated = lambda self, *given, **named: norm(self, *given, **{**named, "momentum": 0.1 * 1.001})  # noqa: E731
        monkeypatch.setattr(torch.nn.BatchNorm2d, "__init__", mutated)
    moved, committed = golden.trajectory(label), golden.read()["losses"][label]
    assert max(abs(a / b - 1) for a, b in zip(moved, committed, strict=True)) > 10 * SAME
