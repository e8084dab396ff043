"""The 5-nn classifier against scikit-learn and a search through all distances."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from builders.tensors import clusters, seeded
from wmse.probes import knn_accuracy, knn_predict, nearest, vote
from wmse.probes.neighbours import BLOCK, smallest


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("distance", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])  # far from the origin the norms cancel
def test_knn_is_scikit_learns(k: int, distance: float, offset: float) -> None:
    train, train_labels = clusters(400, 16, 7, 1, distance)
    test, _ = clusters(150, 16, 7, 5, distance)
    train, test = train + offset, test + offset
    model = KNeighborsClassifier(k, algorithm="brute").fit(train.double().numpy(), train_labels.numpy())
    expected = torch.from_numpy(model.predict(test.double().numpy()))
    assert torch.equal(knn_predict(train, train_labels, test, k), expected)


def test_neighbours_that_differ_in_the_last_digits_only_are_told_apart() -> None:
    """The float32 product cannot rank them: the squares' rounding exceeds the differences of the distances."""
    train = torch.full((8, 4), 1000.0)
    train[:, 0] += torch.tensor([3, 1, 2, 8, 7, 6, 5, 4]).float() / 8
    test = torch.full((1, 4), 1000.0)
    for seed in range(10):
        order = torch.randperm(8, generator=seeded(seed))
        assert knn_predict(train[order], order, test, k=1).tolist() == [1]


def test_a_tie_goes_to_the_smallest_label() -> None:
    labels = torch.tensor([[3, 3, 1, 1, 0], [4, 3, 2, 1, 0], [7, 7, 9, 9, 9], [2, 2, 2, 2, 2], [5, 4, 4, 5, 9]])
    assert vote(labels).tolist() == [1, 0, 9, 2, 4]
    train = torch.tensor([[1.0], [2.0], [3.0], [4.0], [50.0]])
    train_labels = torch.tensor([6, 2, 6, 2, 0])
    model = KNeighborsClassifier(4, algorithm="brute").fit(train.numpy(), train_labels.numpy())
    assert knn_predict(train, train_labels, torch.zeros(1, 1), k=4).tolist() == [2] == model.predict([[0.0]]).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_chunk_has_no_influence(chunk: int) -> None:
    (train, labels), (test, _) = clusters(300, 8, 5, 1, 2.0), clusters(64, 8, 5, 5, 2.0)
    assert torch.equal(knn_predict(train, labels, test, chunk=chunk), knn_predict(train, labels, test))


def brute_force(train: Tensor, labels: Tensor, test: Tensor, k: int) -> Tensor:
    """Every distance in float64, the first samples among equals."""
    distance = (test[:, None].double() - train[None].double()).square().sum(dim=2)
    return vote(labels[distance.sort(dim=1, stable=True).indices[:, :k]])


def test_the_nearest_come_in_order_the_first_of_equals_first() -> None:
    (train, _), (test, _) = clusters(300, 8, 5, 1, 2.0), clusters(64, 8, 5, 5, 2.0)
    train[100:200] = train[:100]
    distance = (test[:, None].double() - train[None].double()).square().sum(dim=2)
    expected = distance.sort(dim=1, stable=True).indices[:, :7]
    assert torch.equal(nearest(train, test, 7, chunk=20), expected)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_of_many_samples_at_the_same_distance_the_first_ones_are_taken(k: int, offset: float) -> None:
    """Far more duplicates than candidates, with other labels, and neighbours that float32 cannot tell apart."""
    points = torch.randint(0, 3, (900, 4), generator=seeded()).float()  # 81 different points
    points[:, 0] += offset
    points[::7, 1] += 2**-11
    labels = torch.randint(0, 10, (900,), generator=seeded(1))
    test = points[torch.randperm(900, generator=seeded(2))[:200]]
    assert torch.equal(knn_predict(points, labels, test, k), brute_force(points, labels, test, k))


@pytest.mark.parametrize("n", [BLOCK, 10 * BLOCK, 100 * BLOCK])
@pytest.mark.parametrize("count", [1, 10, 16])
def test_the_smallest_entries_are_found_block_by_block(n: int, count: int) -> None:
    scores = torch.rand(50, n, generator=seeded())
    scores[:20] = scores[:20].sort(dim=1).values  # neighbours in one block
    scores[20:30, ::7] = 0.5
    found = scores.gather(1, smallest(scores, count)).sort(dim=1).values
    assert torch.equal(found, scores.topk(count, dim=1, largest=False).values.sort(dim=1).values)


def test_features_that_are_not_finite_are_refused() -> None:
    train = torch.randn(40, 4)
    train[3, 2] = torch.nan
    good, labels = torch.randn(40, 4), torch.zeros(40).long()
    for a, b in ((train, good), (good, train)):
        with pytest.raises(ValueError, match="not finite"):
            knn_predict(a, labels, b)


def test_knn_may_use_all_training_samples_but_no_more() -> None:
    train, labels = clusters(6, 3, 2, 1, 1.0)
    assert (knn_predict(train, labels, train, k=6) == labels.mode().values).all()
    with pytest.raises(ValueError, match="7 neighbours of only 6 training samples"):
        knn_predict(train, labels, train, k=7)


def test_knn_accuracy_is_the_share_of_hits_in_percent() -> None:
    train, labels = torch.eye(4), torch.arange(4)
    assert knn_accuracy(train, labels, train, torch.tensor([0, 1, 2, 0]), k=1) == 75.0
