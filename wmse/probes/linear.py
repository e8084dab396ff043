"""A linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wmse.probes.linear_tensors import fit_by_tensors


def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    generator: torch.Generator,
    epochs: int = 500,
    batch_size: int = 1000,
    lr: tuple[float, float] = (1e-2, 1e-6),
    weight_decay: float = 5e-6,
    topk: tuple[int, ...] = (1, 5),
    between: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """Top-k accuracies in percent of a linear classifier after its last epoch.

    One fully connected layer, Adam, the learning rate falling exponentially per epoch from `lr[0]` towards `lr[1]`
    (the authors' schedule: the factor per epoch is (lr[1] / lr[0]) ** (1 / epochs)).

    Args:
        generator: CPU generator of the initial weights and of the order of the samples.
        topk: entries above `num_classes` are left out.
        between: called before every step.
    """
    n, f = train.shape
    bound = f**-0.5  # nn.Linear's own initialisation, from our generator
    weight = torch.empty(num_classes, f).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)
    batches = draw_batches(n, batch_size, epochs, lr, generator, train.device, between)
    fit = choose_fit(train.device, num_classes)
    weight, bias = fit(train, train_labels, weight, bias, batches, weight_decay)
    ranked = torch.addmm(bias, test, weight.T).topk(min(max(topk), num_classes), dim=1).indices
    hits = ranked == test_labels[:, None]
    return {k: 100 * hits[:, :k].any(dim=1).double().mean().item() for k in topk if k <= num_classes}


MOST_CLASSES_BY_LOOPS = 16  # With more, operations on tensors are as fast, and can use more than one thread.


def choose_fit(device: torch.device, num_classes: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that trains the classifier: by loops on a CPU for few classes, else by tensors.

    Both make the same steps but for rounding. Products with so few classes are too small for operations on tensors to
    be fast on a CPU; a loop reads every sample once a step and keeps the parameters in the innermost cache.
    """
    if device.type != "cpu" or num_classes > MOST_CLASSES_BY_LOOPS:
        return fit_by_tensors
    from wmse.probes.linear_loops import fit_by_loops  # here, because numba is slow to import

    return fit_by_loops


def draw_batches(
    n: int,
    batch_size: int,
    epochs: int,
    lr: tuple[float, float],
    generator: torch.Generator,
    device: torch.device,
    between: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Tensor, float]]:
    """The samples' indices and the learning rate of every step, before which `between` is called."""
    decay = (lr[1] / lr[0]) ** (1 / epochs)
    for epoch in range(epochs):
        for index in torch.randperm(n, generator=generator).to(device).split(batch_size):
            between()
            yield index, lr[0] * decay**epoch
