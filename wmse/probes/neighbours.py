"""The k nearest neighbours of the paper's evaluation (k = 5): exact, by one matrix product and a check in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK = 256  # Test samples that are compared with all training samples at once.


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 5,
    between: Callable[[], object] = lambda: None,
) -> float:
    """Top-1 accuracy in percent of the k-nearest-neighbour vote (`knn_predict`)."""
    predicted = knn_predict(train, train_labels, test, k, between=between)
    return 100 * (predicted == test_labels).double().mean().item()


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int = 5,
    chunk: int = CHUNK,
    between: Callable[[], object] = lambda: None,
) -> Tensor:
    """Majority vote of the k nearest training samples (`nearest`); a tie goes to the smallest label.

    Args:
        train_labels: (n,) int64.

    Returns:
        (m,) int64 labels.
    """
    return torch.cat([vote(train_labels[found]) for found in _chunks_of_nearest(train, test, k, chunk, between)])


def nearest(
    train: Tensor, test: Tensor, k: int = 5, chunk: int = CHUNK, between: Callable[[], object] = lambda: None
) -> Tensor:
    """The k nearest training samples of every test sample in Euclidean distance, the nearest one first.

    Args:
        train: (n, f); test: (m, f), not normalised.
        chunk: test samples at a time: memory grows with chunk * n, not with m * n.
        between: called before every chunk; may raise to end the work.

    Returns:
        (m, k) int64 rows of `train`. Of several samples at the same distance the first ones come first.

    Distances come from one float32 matrix product, which loses the digits that decide between close neighbours; so a
    few more candidates than k are taken, and their distances computed again in float64. Where rounding may have hidden
    a neighbour even from the candidates, all samples within its reach are compared.
    """
    return torch.cat(list(_chunks_of_nearest(train, test, k, chunk, between)))


def _chunks_of_nearest(
    train: Tensor, test: Tensor, k: int, chunk: int, between: Callable[[], object]
) -> Iterator[Tensor]:
    n, f = train.shape
    if k > n:
        raise ValueError(f"{k} neighbours of only {n} training samples")
    center = train.mean(dim=0)  # distances do not depend on the origin, the product's rounding does
    centred = train.new_zeros(-(-n // BLOCK) * BLOCK, f)
    torch.sub(train, center, out=centred[:n])
    half_norm = centred.square().sum(dim=1).div_(2)
    longest = (2 * half_norm.max()).sqrt()
    if not (longest.isfinite() and test.isfinite().all()):
        raise ValueError("the features are not finite")
    half_norm[n:] = torch.inf  # the padding is nobody's neighbour
    # One buffer for all chunks: page faults in fresh memory of this size would cost time.
    buffer = train.new_empty(min(chunk, len(test)), len(centred))
    for part in test.split(chunk):
        between()
        part = part - center
        score = torch.addmm(half_norm, part, centred.T, alpha=-1, out=buffer[: len(part)])  # |t|^2 / 2 - x t
        near = smallest(score, min(2 * k + 6, n))
        found, distance = _nearest(part, centred, near, k)
        limit = _reach(part, distance[:, -1], longest)
        for row in (score.gather(1, near).amax(dim=1) <= limit).nonzero()[:, 0].tolist():
            within = (score[row] <= limit[row]).nonzero().T
            found[row] = _nearest(part[row : row + 1], centred, within, k)[0][0]
        yield found


BLOCK = 32  # Training samples per block; only the nearest of a block is compared at first.


def smallest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest entries of each row of (m, n), in any order: (m, count).

    They lie in the `count` blocks with the smallest minima, so only these are searched, not all. n is a
    multiple of BLOCK; a block is every (n / BLOCK)-th column, which makes its minimum a vector operation.
    """
    blocks = scores.shape[1] // BLOCK
    if blocks <= count:
        return scores.topk(count, dim=1, largest=False, sorted=False).indices
    strided = scores.unflatten(1, (BLOCK, blocks))
    block = strided.amin(dim=1).topk(count, dim=1, largest=False, sorted=False).indices
    kept = strided.gather(2, block[:, None].expand(-1, BLOCK, -1)).flatten(1)
    place = kept.topk(count, dim=1, largest=False, sorted=False).indices
    return place // count * blocks + block.gather(1, place % count)


def _nearest(test: Tensor, train: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each row's candidates (m, c), the first ones among equals, and their squared distances."""
    candidates = candidates.sort(dim=1).values
    # In place: fresh memory costs as much as the arithmetic.
    distance = train[candidates].double().sub_(test[:, None]).square_().sum(dim=2)
    distance, order = distance.sort(dim=1, stable=True)
    return candidates.gather(1, order[:, :k]), distance[:, :k]


def _reach(test: Tensor, distance: Tensor, longest: Tensor) -> Tensor:
    """The largest scores that samples may have within these squared distances of the rows of `test`, rounding included.

    Args:
        test: (m, f); distance: (m,) float64; longest: the largest length of a training sample.
    """
    # What the product's rounding can move a score by, as a share of the largest term.
    slack = 2**-19 * (test.norm(dim=1) + longest) * longest
    return (distance - test.double().square().sum(dim=1)).float() / 2 + slack


def vote(labels: Tensor) -> Tensor:
    """The most frequent of each row's labels (m, k), the smallest one among equals: (m,)."""
    ordered = labels.sort(dim=1).values
    counts = (ordered[:, :, None] == ordered[:, None, :]).sum(dim=2)
    first_best = (counts == counts.amax(dim=1, keepdim=True)).byte().argmax(dim=1, keepdim=True)
    return ordered.gather(1, first_best)[:, 0]
