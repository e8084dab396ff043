"""The committed trajectories: a refactoring must not move them, a deliberate change must say why it does."""

from __future__ import annotations

import pytest

import golden


@pytest.mark.parametrize("label", golden.LABELS)
def test_the_losses_are_the_committed_ones(label: str) -> None:
    committed = golden.read()["losses"]
    assert label in committed, 'a new method: run python tests/golden.py "added ..."'
    # Other processors round other views' pixels by a level: about 1e-6 here.
    assert golden.trajectory(label) == pytest.approx(committed[label], rel=1e-4), (
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
    assert all(len(values) == golden.STEPS for values in losses.values())
    assert losses["wmse-2"][-1] < losses["wmse-2"][0]
