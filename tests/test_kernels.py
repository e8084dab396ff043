"""The compiled loops against the same operations on tensors, and what their compilation does in odd places."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmse import kernels
from wmse.kernels import views as loops
from wmse.probes import BLOCK, _batches, _fit_by_loops, _fit_by_tensors, _scores_by_loops, _scores_by_tensors
from wmse.views import SMALLEST, ViewParams, ViewRecipe, draw_params, make_view, shift_hue, view_by_tensors
from wmse.whitening import loss_by_tensors, wmse_loss, wmse_loss_unchecked

RECIPE = ViewRecipe(size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
RECIPES = {
    "cifar": RECIPE,
    "imagenet": replace(RECIPE, crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grayscale_p=0.2, blur_p=0.5),
    "wild": replace(RECIPE, crop_scale=(0.02, 1.0), crop_ratio=(0.2, 5.0), jitter=(1, 2, 2, 0.5), grayscale_p=0.5),
    "no jitter": replace(RECIPE, jitter_p=0, grayscale_p=0),
    "only hue": replace(RECIPE, jitter=(0, 0, 0, 0.5), jitter_p=1, crop_scale=(1, 1)),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Noise of a different roughness and contrast in each image: (n, 3, h, w) uint8."""
    fine = torch.randint(0, 256, (n, 3, h, w), generator=seeded(seed)).float()
    rough = torch.nn.functional.avg_pool2d(fine, 3, 1, 1, count_include_pad=False)
    share = torch.rand(n, 1, 1, 1, generator=seeded(seed + 1))
    return (share * fine + (1 - share) * rough).round().to(torch.uint8)


def differing(images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor | None = None) -> int:
    """How many values of the loops' views differ from the tensors' by more than their last digits: by levels, then."""
    n, _, h, w = images.shape
    pixels = torch.full((n,), h * w) if sizes is None else sizes.prod(dim=1)
    expected = view_by_tensors(images, recipe, params, pixels)
    found = make_view(images, recipe, params, sizes)
    assert (found - expected).abs().max() < 2.5 / 255 / min(recipe.std)  # a level, and what the blur makes of it
    return int((~torch.isclose(found, expected, rtol=0, atol=1e-6)).sum())


# In a sum of a resize whose fraction is one half but for rounding, the order of the terms decides; MKL's is its own.
TIES = 1e-5  # the share of values that may be a level apart; on the CPUs tried it was 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (64, 64, 64), (96, 96, 64), (40, 61, 24)])
def test_a_view_has_the_pixels_that_operations_on_tensors_give(
    recipe: ViewRecipe, height: int, width: int, size: int
) -> None:
    recipe = replace(recipe, size=size)
    params = draw_params(60, height, width, recipe, seeded(2))
    assert differing(noise(60, height, width), recipe, params) <= TIES * 60 * 3 * size**2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(8, 150),
    st.integers(8, 70),
    st.integers(SMALLEST, 50),
    st.sampled_from(sorted(RECIPES)),
    st.integers(0, 2**31),
)
def test_so_it_is_for_images_of_any_sizes(n: int, h: int, w: int, size: int, name: str, seed: int) -> None:
    recipe = replace(RECIPES[name], size=size)
    sizes = torch.stack([torch.randint(8, side + 1, (n,), generator=seeded(seed)) for side in (h, w)], dim=1)
    images = noise(n, h, w, seed)
    inside = (torch.arange(h)[:, None] < sizes[:, 0, None, None]) & (torch.arange(w) < sizes[:, 1, None, None])
    params = draw_params(n, *sizes.T, recipe, seeded(seed))
    # A crop may have one or two pixels, of which many sums are ties.
    assert differing(images * inside[:, None], recipe, params, sizes) <= 1e-3 * n * 3 * size**2 + 1


def test_the_hue_of_every_colour_of_a_grid_is_the_tensors() -> None:
    grid = torch.cartesian_prod(*3 * [torch.arange(0, 256, 5)]).to(torch.uint8).T.contiguous()
    for shift in (-0.5, -0.013, 0.1, 0.4):
        expected = shift_hue(grid.float()[None, :, None], torch.full((1, 1, 1), shift))[0, :, 0]
        r, g, b = grid.numpy().copy()
        loops.shift_hue(r, g, b, len(r), np.float32(shift))
        assert np.array_equal(np.stack([r, g, b]), expected.numpy())


@pytest.mark.parametrize("n", [0, 1, 3, 50])
def test_threads_change_no_bit(threads: None, n: int) -> None:
    images, params = noise(n, 30, 30), draw_params(n, 30, 30, RECIPE, seeded())
    torch.set_num_threads(1)
    one = make_view(images, RECIPE, params)
    for count in (2, 3, 8):
        torch.set_num_threads(count)
        assert torch.equal(make_view(images, RECIPE, params), one)


def test_parts_of_other_arrays_are_views_too() -> None:
    images, params = noise(12, 40, 40), draw_params(6, 20, 20, RECIPE, seeded())
    part = images[::2, :, 10:30, 5:25]
    assert torch.equal(make_view(part, RECIPE, params), make_view(part.contiguous(), RECIPE, params))


# --- loss -------------------------------------------------------------------------------------------------------------

PAPER = [(2, 512, 64, 128, 1), (4, 256, 64, 128, 1), (2, 512, 128, 256, 4), (4, 256, 128, 256, 1)]  # d, N, k, w, iter


def embeddings(d: int, n: int, k: int, seed: int = 0) -> Tensor:
    """Correlated dimensions of different size, an offset, and views that agree in part: (d, n, k) float64."""
    common, own = (torch.randn(m, n, k, generator=seeded(seed + m)).double() for m in (1, d))
    mixing = torch.randn(k, k, generator=seeded(seed)).double() / k**0.5 + torch.eye(k)
    return (common + 0.7 * own) @ mixing * torch.logspace(0, -1, k) + 3


def value_and_gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor | None]], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value, info = loss(x)
    assert info is not None
    assert not info.any()
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def loss_by_both(
    x: Tensor, w_size: int, w_iter: int, normalize: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def loops(v: Tensor) -> tuple[Tensor, Tensor | None]:
        return wmse_loss_unchecked(v, w_size=w_size, w_iter=w_iter, normalize=normalize, generator=seeded(1))

    def tensors(v: Tensor) -> tuple[Tensor, Tensor | None]:
        return loss_by_tensors(v, "cholesky", w_size, w_iter, normalize, seeded(1))

    return value_and_gradient(loops, x), value_and_gradient(tensors, x)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("d", "n", "k", "w_size", "w_iter"), PAPER)
def test_the_loss_and_its_gradient_are_those_of_tensors(
    d: int, n: int, k: int, w_size: int, w_iter: int, normalize: bool
) -> None:
    x = embeddings(d, n, k)
    (value, grad), (expected, expected_grad) = loss_by_both(x, w_size, w_iter, normalize)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert (grad - expected_grad).abs().max() <= 1e-11 * expected_grad.abs().max()
    # In single precision no further from these than the operations on tensors are, but for chance.
    loops, tensors = loss_by_both(x.float(), w_size, w_iter, normalize)
    for ours, theirs, exact in zip(loops, tensors, (expected, expected_grad), strict=True):
        assert (ours.double() - exact).norm() <= 1.5 * (theirs.double() - exact).norm() + 1e-6 * exact.norm()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5), st.integers(1, 70), st.integers(0, 40), st.integers(1, 3), st.integers(1, 3), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
def test_so_they_are_for_sizes_that_fill_no_tile(
    d: int, k: int, extra: int, parts: int, w_iter: int, normalize: bool, seed: int
) -> None:
    w_size = k + k // 3 + 2 + extra  # of fewer samples, the covariance is so nearly singular that digits are lost
    x = torch.randn(d, parts * w_size, k, generator=seeded(seed)).double()
    (value, grad), (expected, expected_grad) = loss_by_both(x, w_size, w_iter, normalize)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)
    assert (grad - expected_grad).abs().max() <= 1e-8 * max(expected_grad.abs().max().item(), 1e-3)


def test_the_loss_takes_embeddings_of_any_strides_and_leaves_them_alone() -> None:
    x = embeddings(6, 48, 20)[::2, :, ::2]
    before = x.clone()
    for part in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.expand(3, -1, -1)):
        found, expected = loss_by_both(part, 24, 2, True)[0], loss_by_both(part.contiguous(), 24, 2, True)[0]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(x, before)


def test_without_a_gradient_the_value_is_the_same() -> None:
    x = embeddings(2, 64, 9)
    value = wmse_loss(x, w_size=32, generator=seeded())
    assert not value.requires_grad
    assert torch.equal(wmse_loss(x.requires_grad_(), w_size=32, generator=seeded()).detach(), value)


def test_a_factor_on_the_loss_is_one_on_the_gradient() -> None:
    x = embeddings(2, 64, 9).requires_grad_()
    loss = wmse_loss(x, w_size=32, generator=seeded())
    once, thrice = (torch.autograd.grad(factor * loss, x, retain_graph=True)[0] for factor in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 39])
def test_a_singular_sub_batch_is_found_wherever_it_shows(place: int) -> None:
    x = embeddings(3, 160, 40)
    x[1, :, place] = 2.0
    _, info = wmse_loss_unchecked(x, w_size=80, w_iter=2, generator=seeded())
    assert info[1].eq(place + 1).all()  # the minor, as LAPACK counts
    assert not info[[0, 2]].any()


TILES = """
import torch
from wmse.kernels.tiles import ROWS, VECTOR_BYTES
from wmse.whitening import loss_by_tensors, wmse_loss_unchecked
x = torch.randn(3, 90, 21, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
generator = torch.Generator().manual_seed
loops = wmse_loss_unchecked(x, w_size=45, generator=generator(1))[0]
tensors = loss_by_tensors(x, "cholesky", 45, 1, True, generator(1))[0]
grads = [torch.autograd.grad(loss, x)[0] for loss in (loops, tensors)]
torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)
print(ROWS, VECTOR_BYTES)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks for features of an x86 CPU")
def test_tiles_fit_a_cpu_without_avx512(tmp_path: Path) -> None:
    cpu = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
    assert result(start(tmp_path, TILES, **cpu)) == "4 32\n"


# --- nearest neighbours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "tests", "f"), [(32, 1, 1), (320, 31, 64), (96, 32, 65), (640, 70, 200)])
def test_scores_and_minima_are_those_of_tensors(threads: None, n: int, tests: int, f: int, dtype: torch.dtype) -> None:
    train, half_norm = torch.randn(n, f, generator=seeded()).to(dtype), torch.rand(n, generator=seeded(1)).to(dtype)
    half_norm[-1] = torch.inf
    expected = half_norm.double() - torch.randn(tests, f, generator=seeded(2)).double() @ train.double().T
    by_tensors, bits = _scores_by_tensors(train, half_norm, tests), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        by_loops = _scores_by_loops(train, half_norm, tests)
        for m in (tests, tests // 2 + 1):  # a last part may be smaller
            x = torch.randn(tests, f, generator=seeded(2)).to(dtype)[:m]
            for scores, minima in (by_loops(x), by_tensors(x)):
                torch.testing.assert_close(
                    scores.double(), expected[:m], rtol=0, atol=3e-4 if x.itemsize == 4 else 1e-12
                )
                assert torch.equal(minima, scores.reshape(m, BLOCK, -1).amin(dim=1))
        bits.append(by_loops(x)[0].clone())
    assert torch.equal(bits[0], bits[1])
    assert torch.equal(bits[0], bits[2])


# --- linear probe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f", "classes"), [(350, 12, 8), (203, 64, 10), (40, 5, 2), (7, 33, 32)])
@pytest.mark.parametrize("batch", [1, 13, 100])
def test_the_probes_steps_are_those_of_tensors_in_float64(n: int, f: int, classes: int, batch: int) -> None:
    x, labels = torch.randn(n, f, generator=seeded()), torch.randint(0, classes, (n,), generator=seeded(1))
    weight, bias = 0.2 * torch.randn(classes, f, generator=seeded(2)), torch.randn(classes, generator=seeded(3))
    batches = list(_batches(n, batch, 3, (1e-2, 1e-4), seeded(4), x.device))
    found = _fit_by_loops(x, labels, weight, bias, batches, 5e-3)
    expected = _fit_by_tensors(x.double(), labels, weight.double(), bias.double(), batches, 5e-3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-4)


def test_large_outputs_do_not_overflow() -> None:
    x, labels = torch.tensor([[1e4], [-1e4], [0.0]]), torch.tensor([0, 1, 1])
    batches = _batches(3, 3, 2, (1e-2, 1e-2), seeded(), x.device)
    weight, bias = _fit_by_loops(x, labels, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), batches, 0)
    assert weight.isfinite().all()
    assert bias.isfinite().all()


# --- compilation ------------------------------------------------------------------------------------------------------

ONE_VIEW = """
import torch
from wmse.views import ViewRecipe, draw_params, make_view
recipe = ViewRecipe(size=12)
images = torch.arange(3 * 12 * 12).remainder(251).to(torch.uint8).view(1, 3, 12, 12)
print(make_view(images, recipe, draw_params(1, 12, 12, recipe, torch.Generator().manual_seed(0))).sum().item())
"""


def start(home: Path, code: str = ONE_VIEW, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**kept, "HOME": str(home), **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_kernels_of_another_text_have_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba would load a cached function although one that it calls, in another file, has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    folders = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "tiles.py").write_text(text)
        folders.append(kernels.cache_folder())
    assert folders[0] == folders[2] != folders[1]


def test_processes_may_compile_at_once_and_a_damaged_or_unusable_cache_costs_no_run(tmp_path: Path) -> None:
    values = {result(process) for process in [start(tmp_path), start(tmp_path)]}
    files = [path for path in (tmp_path / ".cache" / "wmse-repro").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        path.write_bytes(b"")
    (tmp_path / "file").touch()
    nowhere = start(tmp_path / "file", NUMBA_CACHE_DIR="/proc/nowhere")
    values |= {result(process) for process in [start(tmp_path), nowhere]}
    assert len(values) == 1
