"""The compiled loops of the linear probe against the same steps on tensors."""

from __future__ import annotations

import pytest
import torch

from builders.tensors import seeded
from wmse.probes.linear import draw_batches
from wmse.probes.linear_loops import fit_by_loops
from wmse.probes.linear_tensors import fit_by_tensors


@pytest.mark.parametrize(("n", "f", "classes"), [(350, 12, 8), (203, 64, 10), (40, 5, 2), (7, 33, 32)])
@pytest.mark.parametrize("batch", [1, 13, 100])
def test_the_probes_steps_are_those_of_tensors_in_float64(n: int, f: int, classes: int, batch: int) -> None:
    x, labels = torch.randn(n, f, generator=seeded()), torch.randint(0, classes, (n,), generator=seeded(1))
    weight, bias = 0.2 * torch.randn(classes, f, generator=seeded(2)), torch.randn(classes, generator=seeded(3))
    batches = list(draw_batches(n, batch, 3, (1e-2, 1e-4), seeded(4), x.device))
    found = fit_by_loops(x, labels, weight, bias, batches, 5e-3)
    expected = fit_by_tensors(x.double(), labels, weight.double(), bias.double(), batches, 5e-3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-4)


def test_large_outputs_do_not_overflow() -> None:
    x, labels = torch.tensor([[1e4], [-1e4], [0.0]]), torch.tensor([0, 1, 1])
    batches = draw_batches(3, 3, 2, (1e-2, 1e-2), seeded(), x.device)
    weight, bias = fit_by_loops(x, labels, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), batches, 0)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
