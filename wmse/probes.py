"""The two probes of the paper: a linear classifier and 5 nearest neighbours, on frozen features.

Functions of tensors: features (n, f) float32, labels (n,) int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 5,
    chunk: int = 256,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Top-1 accuracy in percent of the k-nearest-neighbour vote (`knn_predict`)."""
    predicted = knn_predict(train, train_labels, test, k, chunk, between)
    return 100 * (predicted == test_labels).double().mean().item()


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int = 5,
    chunk: int = 256,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Majority vote of the k nearest training samples in Euclidean distance; a tie goes to the smallest label.

    Args:
        train: (n, f); test: (m, f), not normalised.
        chunk: test samples at a time: memory grows with chunk * n, not with m * n.
        between: called before every chunk; may raise to end the work.

    Returns:
        (m,) int64 labels.

    Distances come from one float32 matrix product, which loses the digits that decide between close neighbours; so a
    few more candidates than k are taken, and their distances computed again in float64. Where rounding may have hidden
    a neighbour even from the candidates, all samples within its reach are compared. Of several samples at exactly the
    k-th distance the first ones are taken.
    """
    n, f = train.shape
    if k > n:
        raise ValueError(f"{k} neighbours of only {n} training samples")
    blocks = -(-n // BLOCK)
    center = train.mean(dim=0)  # distances do not depend on the origin, the product's rounding does
    centred = train.new_zeros(blocks * BLOCK, f)
    torch.sub(train, center, out=centred[:n])
    half_norm = centred.square().sum(dim=1).div_(2)
    half_norm[n:] = torch.inf  # the padding is nobody's neighbour
    longest = (2 * half_norm[:n].max()).sqrt()
    if not (longest.isfinite() and test.isfinite().all()):
        raise ValueError("the features are not finite")
    predicted = []
    scores = (_scores_by_tensors if train.is_cuda else _scores_by_loops)(centred, half_norm, min(chunk, len(test)))
    for part in test.split(chunk):
        between()
        part = part - center
        score, minima = scores(part)
        near = smallest(score, minima, min(2 * k + 6, n))
        found, distance = _nearest(part, centred, near, k)
        # What the product's rounding can move a score by, as a share of the largest term.
        slack = 2**-19 * (part.norm(dim=1) + longest) * longest
        limit = (distance[:, -1] - part.double().square().sum(dim=1)).float() / 2 + slack
        for row in (score.gather(1, near).amax(dim=1) <= limit).nonzero()[:, 0].tolist() if near.shape[1] < n else ():
            within = (score[row] <= limit[row]).nonzero().T
            found[row] = _nearest(part[row : row + 1], centred, within, k)[0][0]
        predicted.append(vote(train_labels[found]))
    return torch.cat(predicted)


BLOCK = 32  # training samples of which only the nearest is compared at first: every (n / BLOCK)-th of n

Scores = Callable[[Tensor], tuple[Tensor, Tensor]]


def _scores_by_tensors(train: Tensor, half_norm: Tensor, most: int) -> Scores:
    """A function of test samples (m, f): their scores (m, n), |t|^2 / 2 - x t, and the smallest of each block.

    The results of a call are overwritten by the next one: fresh memory of this size costs a fifth of the product's time
    in page faults.

    Args:
        train: (n, f), n a multiple of BLOCK; half_norm: (n,); most: of the test samples in a call.
    """
    buffer = train.new_empty(most, len(train))

    def scores(test: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.addmm(half_norm, test, train.T, alpha=-1, out=buffer[: len(test)])
        return found, found.unflatten(1, (BLOCK, -1)).amin(dim=1)

    return scores


def _scores_by_loops(train: Tensor, half_norm: Tensor, most: int) -> Scores:
    """`_scores_by_tensors` on the CPU: compiled loops, in half of its time."""
    from wmse.kernels import in_threads
    from wmse.kernels.neighbours import half_distances, panel_columns

    columns, blocks = panel_columns(train.element_size()), len(train) // BLOCK
    by_block = [tensor.unflatten(0, (BLOCK, blocks)).numpy() for tensor in (train, half_norm)]
    buffer = train.new_empty(BLOCK + 1, blocks, -(-most // columns) * columns)  # the scores, and the minima at the end

    def scores(test: Tensor) -> tuple[Tensor, Tensor]:
        m, panels = len(test), -(-len(test) // columns)
        # Each panel on its own, so that its product reads neighbouring memory; the last one padded.
        padded = torch.nn.functional.pad(test, (0, 0, 0, panels * columns - m))
        packed = padded.unflatten(0, (panels, columns)).transpose(1, 2).contiguous().numpy()
        found = buffer[:, :, : panels * columns]
        arrays = (*by_block, packed, found[:BLOCK].numpy(), found[BLOCK].numpy())
        in_threads(lambda start, stop: half_distances(start, stop, *arrays), blocks)
        return found[:BLOCK, :, :m].flatten(0, 1).T, found[BLOCK, :, :m].T

    return scores


def smallest(scores: Tensor, minima: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest entries of each row of (m, n), in any order: (m, count).

    They lie in the `count` blocks with the smallest `minima` (m, n / BLOCK), so only these are searched: half the time
    of `topk`. n is a multiple of BLOCK; a block is every (n / BLOCK)-th column, so that its minimum is one of vectors.
    """
    n = scores.shape[1]
    if n // BLOCK <= count:
        return scores.topk(count, dim=1, largest=False, sorted=False).indices
    block = minima.topk(count, dim=1, largest=False, sorted=False).indices
    strided = scores.unflatten(1, (BLOCK, n // BLOCK))
    kept = strided.gather(2, block[:, None].expand(-1, BLOCK, -1)).flatten(1)
    place = kept.topk(count, dim=1, largest=False, sorted=False).indices
    return place // count * (n // BLOCK) + block.gather(1, place % count)


def _nearest(test: Tensor, train: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each row's candidates (m, c), the first ones among equals, and their squared distances."""
    candidates = candidates.sort(dim=1).values
    distance = (train[candidates].double() - test[:, None].double()).square().sum(dim=2)
    distance, order = distance.sort(dim=1, stable=True)
    return candidates.gather(1, order[:, :k]), distance[:, :k]


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
    n, f = train.shape
    bound = f**-0.5  # nn.Linear's own initialisation, from our generator
    weight = torch.empty(num_classes, f).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)
    batches = _batches(n, batch_size, epochs, lr, generator, train.device)
    fit = _fit_by_tensors if train.is_cuda or num_classes > FEW else _fit_by_loops
    weight, bias = fit(train, train_labels, weight, bias, batches, weight_decay)
    ranked = torch.addmm(bias, test, weight.T).topk(min(max(topk), num_classes), dim=1).indices
    hits = ranked == test_labels[:, None]
    return {k: 100 * hits[:, :k].any(dim=1).double().mean().item() for k in topk if k <= num_classes}


# Classes up to which compiled loops are taken. On one core they need 0.4 (10 classes) to 0.6 (200) of the tensors'
# time, but they use one thread: on two cores 0.7 (10), 0.9 (32) and 1.1 (200).
FEW = 32


def _batches(
    n: int, batch_size: int, epochs: int, lr: tuple[float, float], generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, float]]:
    """The samples' indices and the learning rate of every step."""
    decay = (lr[1] / lr[0]) ** (1 / epochs)
    for epoch in range(epochs):
        for index in torch.randperm(n, generator=generator).to(device).split(batch_size):
            yield index, lr[0] * decay**epoch


def _fit_by_loops(
    train: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    batches: Iterable[tuple[Tensor, float]],
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """The weight (c, f) and bias (c,) after the batches, on the CPU.

    A row is fetched once for the outputs and the gradient: with 10 classes and 512 features 0.4 of the tensors' time
    on one core, and still 0.7 where these have two.
    """
    from wmse.kernels.probe import linear_step  # not needed on a GPU, and slow to import

    # Rows that begin with a cache line: crossing one in every vector costs a seventh of the time.
    classes, f = weight.shape
    layer, grad, mean, square = torch.zeros(4, classes, -(-(f + 1) // 16) * 16)
    layer[:, :f], layer[:, f] = weight, bias
    tensors = (train.float(), labels, layer, grad, mean, square)
    features, targets, *state = (tensor.contiguous().numpy() for tensor in tensors)
    for step, (index, lr) in enumerate(batches, start=1):
        linear_step(features, targets, index.numpy(), *state, step, lr, weight_decay)
    return layer[:, :f], layer[:, f]


@torch.no_grad()
def _fit_by_tensors(
    train: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    batches: Iterable[tuple[Tensor, float]],
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """As `_fit_by_loops`, on any device."""
    weight, bias = weight.to(train.device), bias.to(train.device)
    weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
    optimizer = torch.optim.Adam([weight, bias], weight_decay=weight_decay, fused=True)
    rows: Tensor | None = None
    for index, lr in batches:
        rows = train.new_empty(len(index), train.shape[1]) if rows is None else rows  # the first batch is the largest
        x = torch.index_select(train, 0, index, out=rows[: len(index)])
        cross_entropy_gradient(x, labels[index], weight, bias)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return weight, bias


PARTS = 4  # of a batch, computed side by side: products with so few classes keep only one core busy


def cross_entropy_gradient(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Fill `weight.grad` and `bias.grad` of a linear classifier's mean cross-entropy, without autograd.

    Args:
        x: (n, f) samples with labels (n,); weight: (c, f); bias: (c,).

    The classes run down the columns: a softmax is ten times as fast there as along rows as short as these.
    """
    n, f = x.shape
    parts = PARTS if n % PARTS == 0 else 1
    x = x.view(parts, n // parts, f)
    p = torch.baddbmm(bias[:, None], weight.expand(parts, -1, -1), x.mT).softmax(dim=1)
    p.scatter_add_(1, labels.view(parts, 1, -1), p.new_full((1, 1, 1), -1.0).expand(parts, 1, n // parts)).div_(n)
    torch.sum(p, dim=(0, 2), out=bias.grad)
    torch.sum(torch.bmm(p, x), dim=0, out=weight.grad)


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
