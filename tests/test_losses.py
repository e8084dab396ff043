"""The losses against their definitions, written as plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import wmse.whitening
from builders.tensors import gaussian, seeded, whiten_one
from wmse.losses import WMSELoss, byol_loss, mean_pair_distance, nt_xent, wmse_loss, wmse_loss_unchecked
from wmse.whitening import (
    WHITENINGS,
    SingularCovarianceError,
    check_factorisations,
    draw_slices,
    whiten_sub_batches,
)

# --- W-MSE ------------------------------------------------------------------------------------------------------------


def views(d: int, n: int, k: int, seed: int = 0, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(d, n, k): noisy views of common images, so that the loss lies well inside its range."""
    noise = torch.randn(d, n, k, generator=seeded(seed + 1), dtype=torch.float64)
    mixed = gaussian(n, k, seed=seed, spread=spread)
    return (mixed + 0.5 * noise * mixed.std(dim=0)).to(dtype)


def standardize_one(x: Tensor) -> Tensor:
    """One group (n, k) through torch's own batch norm."""
    return torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-5)


ONE = {"cholesky": whiten_one, "batch_norm": standardize_one, "identity": lambda x: x}


def loop_loss(
    v: Tensor, w_size: int, w_iter: int, normalize: bool, generator: torch.Generator, whitening: str = "cholesky"
) -> Tensor:
    """W-MSE by its definition: every iteration, sub-batch, view, image and pair of views one at a time."""
    d, n, k = v.shape
    terms = []
    for _ in range(w_iter):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n, w_size):
            z = [ONE[whitening](view[order[start : start + w_size]]) for view in v]
            if normalize:
                z = [group / group.norm(dim=1, keepdim=True) for group in z]
            for i, j in combinations(range(d), 2):
                terms += [((a - b) ** 2).sum() / (1 if normalize else k) for a, b in zip(z[i], z[j], strict=True)]
    return sum(terms) / len(terms)


def gradient(loss: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of `loss` at `v`."""
    leaf = v.clone().requires_grad_()
    value = loss(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad


def test_the_loss_is_float32_under_autocast() -> None:
    v = views(2, 32, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = wmse_loss(v, w_size=16, generator=seeded())
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, wmse_loss(v, w_size=16, generator=seeded()), rtol=0, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    d=st.integers(2, 8),
    k=st.integers(1, 5),
    extra=st.integers(1, 6),
    slices=st.integers(1, 3),
    w_iter=st.integers(1, 3),
    normalize=st.booleans(),
    spread=st.sampled_from([1.0, 10.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_are_those_of_the_plain_loop(
    d: int, k: int, extra: int, slices: int, w_iter: int, normalize: bool, spread: float, seed: int
) -> None:
    # Of k + 1 samples on such a scale the covariance may be so nearly singular that the loop itself loses these digits.
    assume(spread < 300 or extra > 1)
    w_size = k + extra
    v = views(d, slices * w_size, k, seed, spread)

    def batched(x: Tensor) -> Tensor:
        return wmse_loss(x, w_size=w_size, w_iter=w_iter, normalize=normalize, generator=seeded(seed))

    expected, expected_grad = gradient(lambda x: loop_loss(x, w_size, w_iter, normalize, seeded(seed)), v)
    value, grad = gradient(batched, v)
    # The floor: where nothing is left to learn (unit vectors of one dimension are signs) a gradient is rounding.
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    assert (grad - expected_grad).abs().max() <= 1e-10 * max(expected_grad.abs().max().item(), 1e-3)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_module_is_the_loss_of_views_one_by_one_or_in_one_tensor(normalize: bool) -> None:
    v = views(3, 64, 4)
    module = WMSELoss(w_size=16, w_iter=2, normalize=normalize)
    expected, expected_grad = gradient(lambda x: loop_loss(x, 16, 2, normalize, seeded(5)), v)
    for call in (module, lambda x: module(*x)):
        torch.manual_seed(5)
        value, grad = gradient(call, v)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)
    assert list(module.parameters()) == list(module.buffers()) == []
    assert repr(module) == f"WMSELoss(w_size=16, w_iter=2, normalize={normalize})"


PAPER = [(2, 512, 64, 128, 1), (4, 256, 64, 128, 1), (2, 512, 128, 256, 4), (4, 256, 128, 256, 1)]  # d, N, k, w, iter


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("d", "n", "k", "w_size", "w_iter"), PAPER)
def test_so_they_are_at_the_papers_shapes_in_both_precisions(
    d: int, n: int, k: int, w_size: int, w_iter: int, normalize: bool
) -> None:
    """At these, factors are inverted by halves. Float32 loses no more than the plain loop in float32 does."""

    def batched(x: Tensor) -> Tensor:
        return wmse_loss(x, w_size=w_size, w_iter=w_iter, normalize=normalize, generator=seeded(1))

    def loop(x: Tensor) -> Tensor:
        generator, distances = seeded(1), []
        for _ in range(w_iter):
            for rows in torch.randperm(n, generator=generator).split(w_size):
                z = [whiten_one(view[rows]) for view in x]
                z = [group / (group.norm(dim=1, keepdim=True) if normalize else k**0.5) for group in z]
                distances += [(a - b).square().sum(dim=1).mean() for a, b in combinations(z, 2)]
        return torch.stack(distances).mean()

    v = views(d, n, k, spread=10)
    exact = gradient(loop, v)
    torch.testing.assert_close(gradient(batched, v)[0], exact[0], rtol=1e-12, atol=0)
    assert (gradient(batched, v)[1] - exact[1]).abs().max() <= 1e-11 * exact[1].abs().max()
    for ours, theirs, expected in zip(gradient(batched, v.float()), gradient(loop, v.float()), exact, strict=True):
        assert (ours.double() - expected).norm() <= 1.5 * (theirs.double() - expected).norm() + 1e-6 * expected.norm()


def test_the_loss_takes_embeddings_of_any_strides_and_leaves_them_alone() -> None:
    v = views(6, 48, 40)[::2, :, ::2]
    before = v.clone()
    for part in (v, v.transpose(0, 1).contiguous().transpose(0, 1), v[:1].expand(3, -1, -1)):
        for found, expected in zip(*(gradient(paper_loss, x) for x in (part, part.contiguous())), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(v, before)


def paper_loss(v: Tensor) -> Tensor:
    return wmse_loss(v, w_size=24, w_iter=2, generator=seeded())


def test_without_a_gradient_the_value_is_the_same() -> None:
    v = views(2, 48, 9)
    assert not paper_loss(v).requires_grad
    assert torch.equal(paper_loss(v), gradient(paper_loss, v)[0])


def test_a_factor_on_the_loss_is_one_on_the_gradient() -> None:
    v = views(2, 48, 9)
    torch.testing.assert_close(gradient(lambda x: 3 * paper_loss(x), v)[1], 3 * gradient(paper_loss, v)[1])


def test_the_loss_is_where_it_is_documented_too() -> None:
    assert wmse.whitening.wmse_loss is wmse_loss
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        wmse.whitening.nothing  # noqa: B018


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    d=st.integers(2, 8),
    k=st.integers(1, 5),
    w_size=st.integers(2, 8),
    w_iter=st.integers(1, 3),
    normalize=st.booleans(),
    whitening=st.sampled_from(["batch_norm", "identity"]),
    spread=st.sampled_from([1.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_the_ablations_have_value_and_gradient_of_the_plain_loop(
    d: int, k: int, w_size: int, w_iter: int, normalize: bool, whitening: str, spread: float, seed: int
) -> None:
    """Batch norm instead of whitening, or nothing; a sub-batch may then be smaller than k."""
    v = views(d, 3 * w_size, k, seed, spread)
    arguments = {"w_size": w_size, "w_iter": w_iter, "normalize": normalize, "whitening": whitening}
    value, grad = gradient(lambda x: wmse_loss(x, **arguments, generator=seeded(seed)), v)
    expected, expected_grad = gradient(lambda x: loop_loss(x, **arguments, generator=seeded(seed)), v)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    assert (grad - expected_grad).abs().max() <= 1e-10 * max(expected_grad.abs().max().item(), 1e-3)


def test_without_whitening_there_is_one_untouched_sub_batch_and_no_factorisation() -> None:
    v = views(2, 12, 4)
    z, info = whiten_sub_batches(v, None, "identity")
    assert torch.equal(z.view_as(v), v)
    assert info is None
    assert whiten_sub_batches(v.bfloat16(), None, "identity")[0].dtype == torch.float32


def test_collapsed_embeddings_cost_nothing_without_whitening_and_raise_with_it() -> None:
    """The loss alone rewards collapse: what whitening prevents."""
    same = torch.ones(2, 32, 4).double()
    assert wmse_loss(same, w_size=16, whitening="identity") < 1e-30
    with pytest.raises(SingularCovarianceError):
        wmse_loss(same, w_size=16)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_reaches_every_view(normalize: bool, whitening: str) -> None:
    def loss(v: Tensor) -> Tensor:
        return wmse_loss(v, w_size=16, w_iter=2, normalize=normalize, whitening=whitening, generator=seeded())

    _, grad = gradient(loss, views(5, 32, 4))
    assert (grad.flatten(1).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_has_the_gradient_of_finite_differences(normalize: bool) -> None:
    def loss(v: Tensor) -> Tensor:
        return wmse_loss(v, w_size=5, w_iter=2, normalize=normalize, generator=seeded())

    assert torch.autograd.gradcheck(loss, (views(3, 10, 2).requires_grad_(),))


@pytest.mark.parametrize("normalize", [True, False])
def test_with_one_sub_batch_the_order_of_images_and_of_views_does_not_matter(normalize: bool) -> None:
    v = views(3, 24, 4)
    permuted = v[[2, 0, 1]][:, torch.randperm(24, generator=seeded(1))]
    a, b = (wmse_loss(x, w_size=24, normalize=normalize, generator=seeded(2)) for x in (v, permuted))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_ignores_lower_triangular_affine_maps_even_another_one_for_each_view(normalize: bool) -> None:
    v = views(3, 24, 4)
    maps = gaussian(3, 4, 4, seed=5).tril(-1) + torch.diag_embed(gaussian(3, 4, seed=6).abs() + 0.1)
    mapped = v @ maps.mT + gaussian(3, 1, 4, seed=7)
    a, b = (wmse_loss(x, w_size=12, w_iter=2, normalize=normalize, generator=seeded()) for x in (v, mapped))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


@pytest.mark.parametrize("w_iter", [1, 3])
def test_identical_views_have_zero_loss_and_independent_ones_the_chance_level(w_iter: int) -> None:
    same = gaussian(32, 4).expand(3, -1, -1)
    assert wmse_loss(same, w_size=16, w_iter=w_iter, generator=seeded()) < 1e-28
    independent = gaussian(2, 4096, 4)  # E ||a - b||^2 = 2 for independent unit vectors of mean zero
    assert wmse_loss(independent, w_size=1024, w_iter=w_iter, generator=seeded()).item() == pytest.approx(2, abs=0.05)


def test_the_generator_decides_the_slicing_and_nothing_else_does() -> None:
    v = views(2, 64, 4)
    torch.manual_seed(1)
    first = wmse_loss(v, w_size=16, generator=seeded(3))
    torch.manual_seed(2)
    assert wmse_loss(v, w_size=16, generator=seeded(3)) == first
    assert wmse_loss(v, w_size=16, generator=seeded(4)) != first
    torch.manual_seed(5)
    implicit = wmse_loss(v, w_size=16)
    assert implicit == wmse_loss(v, w_size=16, generator=seeded(5))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 30, 4), {"w_size": 16}, r"\(30\) must be a multiple of w_size \(16\)"),
        ((2, 32, 16), {"w_size": 16}, r"w_size \(16\) must exceed the embedding size \(16\)"),
        ((2, 32, 16), {"w_size": 8}, r"w_size \(8\) must exceed the embedding size \(16\)"),
        ((1, 32, 4), {"w_size": 16}, r"d >= 2, N, k\), got \(1, 32, 4\)"),
        ((32, 4), {"w_size": 16}, r"d >= 2, N, k\), got \(32, 4\)"),
        ((2, 32, 4), {"w_size": 16, "w_iter": 0}, "w_iter must be at least 1, got 0"),
        ((2, 32, 4), {"w_size": 16, "whitening": "zca"}, "must be one of cholesky, batch_norm, identity, got 'zca'"),
    ],
)
def test_bad_arguments_are_refused_with_their_numbers(
    shape: tuple[int, ...], arguments: dict[str, int | str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wmse_loss(torch.zeros(shape), **arguments)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_raise_and_say_where(broken: float) -> None:
    v = views(3, 32, 4, dtype=torch.float32)
    order = torch.randperm(32, generator=seeded(1))
    v[2, order[20], 1] = broken
    with pytest.raises(SingularCovarianceError, match=r"^view 2, whitening iteration 0, sub-batch 1: .* 16 samples"):
        wmse_loss(v, w_size=16, generator=seeded(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_embeddings_raise(dtype: torch.dtype) -> None:
    with pytest.raises(SingularCovarianceError, match="view 0, whitening iteration 0, sub-batch 0"):
        wmse_loss(torch.ones(2, 32, 4, dtype=dtype), w_size=16, generator=seeded())


def test_the_unchecked_loss_returns_the_state_of_every_factorisation() -> None:
    v = views(3, 32, 4)
    loss, info = wmse_loss_unchecked(v, draw_slices(32, 16, 5, seeded()))
    assert info.shape == (3, 5, 2)
    assert not info.any()
    assert loss == wmse_loss(v, w_size=16, w_iter=5, generator=seeded())
    v[1] = 0
    _, info = wmse_loss_unchecked(v, draw_slices(32, 16))
    assert info.ne(0).flatten(1).all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("place", [0, 7, 31, 32, 50, 79])
def test_a_singular_sub_batch_is_found_wherever_it_shows(place: int) -> None:
    """Factors of 80 dimensions are found by halves, down to 20."""
    v = views(3, 192, 80)
    v[1, :, place] = 2.0
    _, info = wmse_loss_unchecked(v, draw_slices(192, 96, 2))
    assert info[1].ne(0).all()
    assert not info[[0, 2]].any()


def test_the_first_failed_factorisation_is_reported() -> None:
    info = torch.zeros(2, 3, 4, dtype=torch.int32)
    check_factorisations(info, 16, 8)
    info[1, 2, 3] = 5
    with pytest.raises(SingularCovarianceError, match=r"^view 1, whitening iteration 2, sub-batch 3: .* of 16 samples"):
        check_factorisations(info, 16, 8)


@pytest.mark.parametrize("d", [2, 3, 7])
def test_mean_pair_distance_is_the_mean_over_all_pairs(d: int) -> None:
    z = gaussian(d, 2, 5, 3)
    pairs = [(z[i] - z[j]).square().sum(dim=-1).mean() for i, j in combinations(range(d), 2)]
    torch.testing.assert_close(mean_pair_distance(z), torch.stack(pairs).mean(), rtol=1e-13, atol=0)


def test_mean_pair_distance_does_not_cancel_when_views_nearly_agree() -> None:
    z = torch.nn.functional.normalize(gaussian(100, 8), dim=-1)
    a, b = z.float(), (z + 1e-5 * gaussian(100, 8, seed=1)).float()
    exact = (a.double() - b.double()).square().sum(dim=-1).mean().item()
    assert mean_pair_distance(torch.stack([a, b])).item() == pytest.approx(exact, rel=1e-2)


# --- baselines --------------------------------------------------------------------------------------------------------


def embeddings(d: int, n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(d, n, k, generator=seeded(seed), dtype=torch.float64)


def loop(v: Tensor, temperature: float, normalize: bool) -> Tensor:
    """Chen et al. (2020), equation 1, one sample of one pair of views in one direction at a time."""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / (a.norm() * b.norm()) if normalize else a @ b) / temperature

    terms = []
    for i, j in combinations(range(len(v)), 2):
        both = [*v[i], *v[j]]
        n = len(v[i])
        for s, sample in enumerate(both):
            positive = similarity(sample, both[(s + n) % (2 * n)])
            others = torch.stack([similarity(sample, other) for t, other in enumerate(both) if t != s])
            terms.append(others.logsumexp(dim=0) - positive)
    return torch.stack(terms).mean()


def assert_same_value_and_gradient(fast: Tensor, slow: Tensor, value: Tensor, expected: Tensor) -> None:
    """Relative error at most 1e-10, and every view has a gradient."""
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    largest = slow.grad.abs().max().item()
    assert (fast.grad - slow.grad).abs().max() <= 1e-10 * max(largest, 1e-3)
    assert (slow.grad.flatten(1).norm(dim=1) > 1e-6 * largest).all()


PROPERTIES = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SHAPES = {"d": st.integers(2, 8), "n": st.integers(2, 5), "k": st.integers(2, 6), "seed": st.integers(0, 1000)}


@PROPERTIES
@given(**SHAPES, normalize=st.booleans(), temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_nt_xent_has_value_and_gradient_of_the_plain_loop(
    d: int, n: int, k: int, seed: int, normalize: bool, temperature: float
) -> None:
    fast, slow = (embeddings(d, n, k, seed).requires_grad_() for _ in range(2))
    value, expected = nt_xent(fast, temperature, normalize), loop(slow, temperature, normalize)
    assert_same_value_and_gradient(fast, slow, value, expected)


def byol_loop(p: Tensor, t: Tensor, normalize: bool) -> Tensor:
    """Grill et al. (2020), equation 2, both directions of every pair of views, one image at a time."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 2 - 2 * (a @ b) / (a.norm() * b.norm()) if normalize else ((a - b) ** 2).mean()

    pairs = []
    for i, j in combinations(range(len(p)), 2):
        directions = [distance(p[i, s], t[j, s]) + distance(p[j, s], t[i, s]) for s in range(p.shape[1])]
        pairs.append(torch.stack(directions).mean())
    return torch.stack(pairs).mean()


@PROPERTIES
@given(**SHAPES, normalize=st.booleans())
def test_byol_has_value_and_gradient_of_the_plain_loop(d: int, n: int, k: int, seed: int, normalize: bool) -> None:
    targets = embeddings(d, n, k, seed + 1)
    fast, slow = (embeddings(d, n, k, seed).requires_grad_() for _ in range(2))
    value, expected = byol_loss(fast, targets, normalize), byol_loop(slow, targets, normalize)
    assert_same_value_and_gradient(fast, slow, value, expected)


def test_byol_is_float32_under_autocast_and_zero_where_all_agree() -> None:
    p, t = embeddings(2, 6, 4).float(), embeddings(2, 6, 4, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = byol_loss(p, t)
    torch.testing.assert_close(under, byol_loss(p, t), rtol=0, atol=0)
    same = embeddings(1, 6, 4).expand(3, -1, -1)
    assert byol_loss(same, 3 * same) < 1e-15
    assert byol_loss(same, -same).item() == pytest.approx(8)  # both directions of opposite unit vectors


def test_the_default_temperature_is_the_papers() -> None:
    v = embeddings(2, 6, 4)
    assert nt_xent(v) == nt_xent(v, 0.5)


@pytest.mark.parametrize("d", [2, 3])
def test_the_views_are_interchangeable(d: int) -> None:
    v = embeddings(d, 6, 4)
    torch.testing.assert_close(nt_xent(v.flip(0)), nt_xent(v), rtol=1e-13, atol=0)


def test_the_order_and_the_lengths_of_the_samples_do_not_matter() -> None:
    v = embeddings(2, 6, 4)
    scaled = v[:, [3, 1, 5, 0, 2, 4]] * torch.arange(1, 7)[:, None]
    torch.testing.assert_close(nt_xent(scaled), nt_xent(v), rtol=1e-13, atol=0)


def test_collapsed_embeddings_have_the_loss_of_guessing() -> None:
    assert nt_xent(torch.ones(2, 8, 4).double()).item() == pytest.approx(math.log(15), rel=1e-12)


def test_autocast_does_not_lower_the_precision() -> None:
    v = embeddings(2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single, double, half = nt_xent(v.float()), nt_xent(v), nt_xent(v.bfloat16())
    assert (single.dtype, double.dtype, half.dtype) == (torch.float32, torch.float64, torch.float32)
    torch.testing.assert_close(single, nt_xent(v.float()), rtol=0, atol=0)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)
