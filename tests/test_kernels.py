"""The compiled loops against the same operations on tensors, and what their compilation does in odd places."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmse import compiled
from wmse.probes.linear import draw_batches
from wmse.probes.linear_loops import fit_by_loops
from wmse.probes.linear_tensors import fit_by_tensors
from wmse.views import SMALLEST_BY_LOOPS, ViewParams, ViewRecipe, draw_params, make_view
from wmse.views.loops import rotate_hue, view_by_loops
from wmse.views.tensors import shift_hue, view_by_tensors

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
    sizes = torch.tensor([[h, w]]).expand(n, 2) if sizes is None else sizes
    expected = view_by_tensors(images, recipe, params, sizes)
    found = view_by_loops(images, recipe, params, sizes)
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
    st.integers(SMALLEST_BY_LOOPS, 50),
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
        rotate_hue(r, g, b, len(r), np.float32(shift))
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


# --- linear probe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f", "classes"), [(350, 12, 8), (203, 64, 10), (40, 5, 2), (7, 33, 32)])
@pytest.mark.parametrize("batch", [1, 13, 100])
def test_the_probes_steps_are_those_of_tensors_in_float64(n: int, f: int, classes: int, batch: int) -> None:
    x, labels = torch.randn(n, f, generator=seeded()), torch.randint(0, classes, (n,), generator=seeded(1))
    weight, bias = 0.2 * torch.randn(classes, f, generator=seeded(2)), torch.randn(classes, generator=seeded(3))
    batches = list(draw_batches(n, batch, 3, (1e-2, 1e-4), seeded(4), x.device))
    found = fit_by_loops(x, labels, weight, bias, batches, 5e-3)
    expected = fit_by_tensors(x.double(), labels, weight.double(), bias.double(), batches, 5e-3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-4)


def test_large_outputs_do_not_overflow() -> None:
    x, labels = torch.tensor([[1e4], [-1e4], [0.0]]), torch.tensor([0, 1, 1])
    batches = draw_batches(3, 3, 2, (1e-2, 1e-2), seeded(), x.device)
    weight, bias = fit_by_loops(x, labels, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), batches, 0)
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


@pytest.mark.parametrize("changed", compiled.SOURCES)
def test_loops_of_another_text_have_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """numba would load a cached function although one that it calls, in another file, has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in compiled.SOURCES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    folders = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / changed).write_text(text)
        folders.append(compiled.cache_folder())
    assert folders[0] == folders[2] != folders[1]


def test_every_module_with_loops_is_in_the_caches_name() -> None:
    with_loops = {
        path.relative_to(compiled.PACKAGE).as_posix()
        for path in compiled.PACKAGE.rglob("*.py")
        if "from numba import" in path.read_text()
    }
    assert with_loops <= set(compiled.SOURCES)


def test_numba_is_not_imported_before_a_loop_is_due(tmp_path: Path) -> None:
    """It takes long, and on a GPU no loop ever is."""
    code = "import sys, wmse.views, wmse.probes, wmse.losses, wmse.methods.wmse; print('numba' in sys.modules)"
    assert result(start(tmp_path, code)) == "False\n"


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
