"""The parameters of views have torchvision's distributions, and depend on the generator alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from builders.tensors import seeded
from builders.views import IDENTITY, IMAGENET
from wmse.views import ViewParams, ViewRecipe, draw_params
from wmse.views.params import BRIGHTNESS, draw_crops

# Statistical tests compare a p-value with this: one false alarm in ten thousand draws of the fixed seeds.
FALSE_ALARM = 1e-4


def torchvision_crops(n: int, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    sampler = RandomResizedCrop.get_params
    return torch.tensor([sampler(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.2, 1.0)), (96, 96, (0.2, 1.0)), (60, 100, (0.08, 1.0))]
)
def test_crops_have_torchvisions_distribution(height: int, width: int, scale: tuple[float, float]) -> None:
    found = draw_crops(6000, height, width, scale, (3 / 4, 4 / 3), seeded())
    expected = torchvision_crops(3000, height, width, scale)

    def statistics(box: Tensor) -> dict[str, Tensor]:
        top, left, h, w = box.double().unbind(1)
        # Positions relative to their range where they have one, so that they are tested apart from the sizes.
        place = {"top": top / (height - h).clamp(min=1), "left": left / (width - w).clamp(min=1)}
        return {"height": h, "width": w, "area": h * w, "aspect": w / h, **place}

    references = statistics(expected)
    for name, values in statistics(found).items():
        assert ks_2samp(values, references[name]).pvalue > FALSE_ALARM / 6, name


def test_crops_lie_inside_the_image_and_reach_all_its_edges() -> None:
    top, left, h, w = draw_crops(5000, 20, 30, (0.05, 1.0), (0.5, 2.0), seeded()).unbind(1)
    assert min(top.min(), left.min()) == 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() == 20
    assert (left + w).max() == 30


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10)])
def test_where_no_crop_fits_the_central_box_is_torchvisions(height: int, width: int) -> None:
    found = draw_crops(20, height, width, (0.5, 1.0), (3 / 4, 4 / 3), seeded())
    assert torch.equal(found, torchvision_crops(20, height, width, (0.5, 1.0)))
    assert len(found.unique(dim=0)) == 1


def test_a_whole_image_is_the_last_resort_when_its_ratio_is_allowed() -> None:
    box = draw_crops(3, 20, 24, (1.5, 1.6), (3 / 4, 4 / 3), seeded())
    assert box.tolist() == [[0, 0, 20, 24]] * 3


def test_probabilities_are_those_of_the_recipe() -> None:
    n = 20_000
    recipe = replace(IMAGENET, jitter_p=0.8, grayscale_p=0.2, flip_p=0.3, blur_p=0.5)
    params = draw_params(n, 32, 32, recipe, seeded())
    identity = (params.factors == torch.tensor(IDENTITY)).all(dim=1)
    for applied, p in ((~identity, 0.8), (params.gray, 0.2), (params.flip, 0.3), (params.sigma > 0, 0.5)):
        assert applied.double().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))  # 6e-5 each


def test_factors_and_blur_are_uniform_in_their_ranges() -> None:
    recipe = replace(IMAGENET, jitter=(0.4, 0.8, 1.0, 0.1), jitter_p=1.0, blur_p=1.0)
    params = draw_params(5000, 32, 32, recipe, seeded())
    ranges = [(0.6, 1.4), (0.2, 1.8), (0.0, 2.0), (-0.1, 0.1), (0.1, 2.0)]
    for values, (low, high) in zip([*params.factors.T, params.sigma], ranges, strict=True):
        assert kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > FALSE_ALARM / 5


def test_the_jitter_is_drawn_as_torchvision_draws_it() -> None:
    """Factors, hue and the order of the operations, jointly: 6 comparisons with one false alarm in ten thousand."""
    jitter, n = ColorJitter(0.4, 0.8, 1.0, 0.1), 4000
    torch.manual_seed(0)
    drawn = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(n)
    ]
    expected = torch.tensor([factors for _, *factors in drawn])
    params = draw_params(n, 32, 32, ViewRecipe(jitter=(0.4, 0.8, 1.0, 0.1), jitter_p=1.0), seeded())
    for ours, theirs in zip(params.factors.T, expected.T, strict=True):
        assert ks_2samp(ours, theirs).pvalue > FALSE_ALARM / 6
    code = torch.tensor([64, 16, 4, 1])  # an order as one number, so that all 24 are compared at once
    orders = [(order * code).sum(dim=1) for order in (params.order, torch.stack([order for order, *_ in drawn]))]
    both = torch.stack([torch.bincount(order, minlength=256) for order in orders])
    assert chi2_contingency(both[:, both.sum(dim=0) > 0].numpy()).pvalue > FALSE_ALARM / 6
    # Which operation comes first is independent of how strong it is.
    first = params.order[:, 0] == BRIGHTNESS
    assert ks_2samp(params.factors[first, BRIGHTNESS], params.factors[~first, BRIGHTNESS]).pvalue > FALSE_ALARM / 6


def test_the_24_orders_of_the_jitter_are_equally_likely() -> None:
    order = draw_params(12_000, 32, 32, ViewRecipe(), seeded()).order
    assert (order.sort(dim=1).values == torch.arange(4)).all()
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > FALSE_ALARM


def test_parameters_are_independent_of_each_other_and_from_image_to_image() -> None:
    n = 20_000
    params = draw_params(n, 64, 64, replace(IMAGENET, jitter_p=1.0, blur_p=1.0), seeded())
    top, left, h, w = params.box.double().unbind(1)
    # Centres, area and aspect of a box are uncorrelated, although its sizes and positions are not.
    box = [top + h / 2, left + w / 2, h * w, (w / h).log()]
    columns = [*params.factors.T, *params.order.T[:3], params.gray, params.flip, params.sigma, *box]
    table = torch.stack([column.double() for column in columns])
    own = torch.corrcoef(table)
    own[4:7, 4:7] = torch.eye(3).double()  # places of one permutation exclude each other
    following = torch.corrcoef(torch.cat([table[:, :-1], table[:, 1:]]))[len(table) :, : len(table)]
    bound = 5 / math.sqrt(n)  # 6e-7 for each of some 300 correlations
    assert (own - torch.eye(len(table))).abs().max() < bound
    assert following.abs().max() < bound


def test_the_seed_decides_the_views_and_each_seed_draws_others() -> None:
    a, b, c = (draw_params(50, 32, 32, IMAGENET, seeded(seed)) for seed in (1, 1, 2))
    for name in vars(a):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert not torch.equal(getattr(a, name), getattr(c, name)), name


def test_slices_and_copies_of_parameters_keep_every_field() -> None:
    params = draw_params(10, 32, 32, IMAGENET, seeded())
    part = params.to("cpu")[2:5]
    assert isinstance(part, ViewParams)
    for name in vars(params):
        assert torch.equal(getattr(part, name), getattr(params, name)[2:5])
