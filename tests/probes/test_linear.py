"""The linear classifier against a plain loop with torch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from builders.tensors import clusters, seeded
from wmse.probes import linear_accuracy
from wmse.probes.linear_tensors import cross_entropy_gradient


@pytest.mark.parametrize("n", [12, 13])  # in parts, and not
def test_the_probes_gradient_is_autograds(n: int) -> None:
    x, labels = clusters(n, 6, 4, 1, 1.0)
    layer = nn.Linear(6, 4).double()
    nn.functional.cross_entropy(layer(x.double()), labels).backward()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
    cross_entropy_gradient(x.double(), labels, weight, bias)
    torch.testing.assert_close(weight.grad, layer.weight.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(bias.grad, layer.bias.grad, rtol=1e-12, atol=1e-15)


def loop_accuracy(
    data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, seed: int, epochs: int, batch: int
) -> dict[int, float]:
    """The authors' probe with torch's own layer, optimiser and schedule."""
    (x, y), generator = data, seeded(seed)
    classifier = nn.Linear(x.shape[1], classes)
    bound = x.shape[1] ** -0.5
    nn.init.uniform_(classifier.weight, -bound, bound, generator)
    nn.init.uniform_(classifier.bias, -bound, bound, generator)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2, weight_decay=5e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-6 / 1e-2) ** (1 / epochs))
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch):
            chosen = order[start : start + batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(x[chosen]), y[chosen]).backward()
            optimizer.step()
        schedule.step()
    ranked = classifier(test[0]).argsort(dim=1, descending=True)
    return {k: 100 * (ranked[:, :k] == test[1][:, None]).any(dim=1).float().mean().item() for k in (1, 5)}


@pytest.mark.parametrize("batch", [64, 100, 1000])  # 350 samples: always with a smaller last batch
@pytest.mark.parametrize("classes", [7, 8, 40])  # in loops, odd and even, and by tensors
def test_the_linear_probe_is_the_plain_loop(batch: int, classes: int) -> None:
    data, test = clusters(350, 12, classes, 1, 2.0), clusters(500, 12, classes, 5, 2.0)
    found = linear_accuracy(*data, *test, num_classes=classes, generator=seeded(3), epochs=12, batch_size=batch)
    assert found == pytest.approx(loop_accuracy(data, test, classes, 3, 12, batch), abs=1e-4)
    assert found[1] < found[5] < 100  # not saturated, so that a difference would show


def test_separable_classes_are_told_apart() -> None:
    data, test = clusters(400, 16, 6, 1, 20.0), clusters(300, 16, 6, 5, 20.0)
    found = linear_accuracy(*data, *test, num_classes=6, generator=seeded(), epochs=60, batch_size=100)
    assert found == {1: 100.0, 5: 100.0}


def test_the_last_smaller_batch_is_used() -> None:
    """Ten samples in batches of one thousand: were they dropped, nothing would be learnt."""
    x, y = torch.eye(10), torch.arange(10)
    found = linear_accuracy(x, y, x, y, num_classes=10, generator=seeded(), epochs=300, lr=(0.1, 0.01))
    assert found[1] == 100.0


def test_the_generator_decides_the_probe_and_the_global_state_does_not() -> None:
    data, test = clusters(100, 6, 4, 1, 1.0), clusters(997, 6, 4, 5, 1.0)
    found = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(state)
        found.append(linear_accuracy(*data, *test, num_classes=4, generator=seeded(seed), epochs=1)[1])
    assert found[0] == found[1] != found[2]


def test_topk_above_the_number_of_classes_is_left_out() -> None:
    data = clusters(50, 4, 3, 1, 1.0)
    found = linear_accuracy(*data, *data, num_classes=3, generator=seeded(), epochs=1, topk=(1, 2, 3, 5))
    assert list(found) == [1, 2, 3]
    assert found[1] < found[2] < found[3] == 100.0
