"""The probes against scikit-learn and against a plain loop with torch's own modules."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from wmse.probes import embedding_spread, knn_accuracy, knn_predict, linear_accuracy, vote
from wmse.probes.linear_tensors import cross_entropy_gradient
from wmse.probes.neighbours import BLOCK, smallest


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int, f: int, classes: int, seed: int, distance: float) -> tuple[Tensor, Tensor]:
    """n samples of Gaussian classes, whose centres are the same for every seed and about `distance` apart."""
    centres = torch.randn(classes, f, generator=seeded(99)) * distance / (2 * f) ** 0.5
    labels = torch.randint(0, classes, (n,), generator=seeded(seed))
    return centres[labels] + torch.randn(n, f, generator=seeded(seed + 1)), labels


# --- nearest neighbours -----------------------------------------------------------------------------------------------


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


def test_knn_may_use_all_training_samples_but_no_more() -> None:
    train, labels = clusters(6, 3, 2, 1, 1.0)
    assert (knn_predict(train, labels, train, k=6) == labels.mode().values).all()
    with pytest.raises(ValueError, match="7 neighbours of only 6 training samples"):
        knn_predict(train, labels, train, k=7)


def test_knn_accuracy_is_the_share_of_hits_in_percent() -> None:
    train, labels = torch.eye(4), torch.arange(4)
    assert knn_accuracy(train, labels, train, torch.tensor([0, 1, 2, 0]), k=1) == 75.0


# --- linear classifier ------------------------------------------------------------------------------------------------


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


# --- collapse ---------------------------------------------------------------------------------------------------------


def test_an_isotropic_cloud_has_spread_one_and_full_rank() -> None:
    spread, rank = embedding_spread(torch.randn(20_000, 16, generator=seeded()))
    assert spread.item() == pytest.approx(1, abs=0.02)
    assert rank.item() == pytest.approx(16, abs=0.1)


def test_collapsed_embeddings_have_no_spread_and_rank_one() -> None:
    point = torch.randn(1, 16, generator=seeded())
    spread, rank = embedding_spread(point.expand(500, -1))
    assert spread.item() == pytest.approx(0, abs=1e-12)
    assert rank.item() == pytest.approx(1, abs=1e-6)
    along = torch.randn(500, 1, generator=seeded(1)).double() * point.double()
    assert embedding_spread(along)[1].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("r", [2, 5])
def test_a_cloud_in_a_subspace_has_its_rank(r: int) -> None:
    basis, _ = torch.linalg.qr(torch.randn(16, r, generator=seeded()).double())
    cloud = torch.randn(5000, r, generator=seeded(1)).double() @ basis.T + 3
    assert embedding_spread(cloud)[1].item() == pytest.approx(r, rel=0.01)
