"""The two probes of the paper: a linear classifier and 5 nearest neighbours, on frozen features.

Functions of tensors: features (n, f) float32, labels (n,) int64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 5, chunk: int = 1000
) -> float:
    """Top-1 accuracy in percent of the k-nearest-neighbour vote (`knn_predict`)."""
    predicted = knn_predict(train, train_labels, test, k, chunk)
    return 100 * (predicted == test_labels).double().mean().item()


def knn_predict(train: Tensor, train_labels: Tensor, test: Tensor, k: int = 5, chunk: int = 1000) -> Tensor:
    """Majority vote of the k nearest training samples in Euclidean distance; a tie goes to the smallest label.

    Args:
        train: (n, f); test: (m, f), not normalised.
        chunk: test samples at a time: memory grows with chunk * n, not with m * n.

    Returns:
        (m,) int64 labels.

    Candidates come from one float32 matrix product; their distances are then computed again in float64, because
    ``|a|^2 + |b|^2 - 2ab`` loses the digits that decide between close neighbours. Which of several samples at exactly
    the k-th distance is taken is arbitrary.
    """
    if k > len(train):
        raise ValueError(f"{k} neighbours of only {len(train)} training samples")
    center = train.mean(dim=0)  # distances do not depend on the origin, the product's rounding does
    train, test = train - center, test - center
    half_norm = train.square().sum(dim=1) / 2
    candidates = min(2 * k + 6, len(train))
    predicted = []
    for part in test.split(chunk):
        near = torch.addmm(half_norm, part, train.T, alpha=-1).topk(candidates, dim=1, largest=False).indices
        exact = (train[near].double() - part[:, None].double()).square().sum(dim=2)
        near = near.gather(1, exact.topk(k, dim=1, largest=False).indices)
        predicted.append(vote(train_labels[near]))
    return torch.cat(predicted)


def vote(labels: Tensor) -> Tensor:
    """The most frequent of each row's labels (m, k), the smallest one among equals: (m,)."""
    ordered = labels.sort(dim=1).values
    counts = (ordered[:, :, None] == ordered[:, None, :]).sum(dim=2)
    first_best = (counts == counts.amax(dim=1, keepdim=True)).byte().argmax(dim=1, keepdim=True)
    return ordered.gather(1, first_best)[:, 0]


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
) -> dict[int, float]:
    """Top-k accuracies in percent of a linear classifier after its last epoch.

    One fully connected layer, Adam, the learning rate falling exponentially per epoch from `lr[0]` towards `lr[1]`
    (the authors' schedule: the factor per epoch is (lr[1] / lr[0]) ** (1 / epochs)).

    Args:
        generator: CPU generator of the initial weights and of the order of the samples.
        topk: entries above `num_classes` are left out.
    """
    classifier = nn.Linear(train.shape[1], num_classes)
    bound = train.shape[1] ** -0.5  # nn.Linear's own initialisation, from our generator
    with torch.no_grad():
        classifier.weight.uniform_(-bound, bound, generator=generator)
        classifier.bias.uniform_(-bound, bound, generator=generator)
    classifier.to(train.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr[0], weight_decay=weight_decay, fused=True)
    decay = (lr[1] / lr[0]) ** (1 / epochs)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr[0] * decay**epoch
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for index in order.split(batch_size):
            optimizer.zero_grad()
            cross_entropy(classifier(train[index]), train_labels[index]).backward()
            optimizer.step()
    with torch.no_grad():
        ranked = classifier(test).topk(min(max(topk), num_classes), dim=1).indices
    hits = ranked == test_labels[:, None]
    return {k: 100 * hits[:, :k].any(dim=1).double().mean().item() for k in topk if k <= num_classes}


def embedding_spread(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """How far embeddings are from collapse.

    Args:
        embeddings: (n, k).

    Returns:
        Two scalars: the mean standard deviation per dimension of the unit-length embeddings, times sqrt(k) (1 for an
        isotropic spread, 0 for a single point; Chen & He 2021), and the effective rank of the centred embeddings
        (the exponential of the entropy of the singular values' shares; Roy & Vetterli 2007).
    """
    x = embeddings.double()
    unit = nn.functional.normalize(x, dim=1)
    spread = unit.std(dim=0).mean() * x.shape[1] ** 0.5
    singular = torch.linalg.svdvals(x - x.mean(dim=0))
    share = singular / singular.sum().clamp(min=1e-300)
    rank = torch.exp(torch.special.entr(share).sum())
    return spread, rank
