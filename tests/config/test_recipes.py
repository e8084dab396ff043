"""Recipes: the paper's parameters, variants and experiments."""

from __future__ import annotations

from typing import Any

import pytest

from wmse.config import benchmarks, experiments, load_project, make_spec, paper_differences
from wmse.config.recipes import merge_variants
from wmse.datasets import SOURCES
from wmse.errors import ConfigError

# (benchmark, method) -> epochs, lr, N, k, w_size, w_iter: the table of recipes in the authors' code.
PAPER = {
    "cifar10/wmse-2": (1000, 3e-3, 512, 64, 128, 1),
    "cifar10/wmse-4": (1000, 3e-3, 256, 64, 128, 1),
    "cifar100/wmse-4": (1000, 3e-3, 256, 64, 128, 1),
    "stl10/wmse-2": (2000, 2e-3, 512, 128, 256, 4),
    "stl10/wmse-4": (2000, 2e-3, 256, 128, 256, 1),
    "tiny_imagenet/wmse-2": (1000, 2e-3, 512, 128, 256, 4),
    "tiny_imagenet/wmse-4": (1000, 2e-3, 256, 128, 256, 1),
    "imagenet100/wmse-2": (240, 2e-3, 512, 128, 256, 1),
    "imagenet100/wmse-4": (240, 2e-3, 256, 128, 256, 1),
}


@pytest.mark.parametrize("cell", PAPER)
def test_the_paper_preset_has_the_papers_recipe(cell: str) -> None:
    spec = next(spec for spec in load_project({"preset": "paper"}).runs if spec.cell == cell)
    found = (spec.epochs, spec.lr, spec.batch_size, spec.embedding, spec.w_size, spec.w_iter)
    assert found == PAPER[cell]
    assert (spec.width, spec.warmup_iterations, spec.lr_drops, spec.lr_drop_factor) == (64, 500, (50, 25), 0.2)
    assert (spec.optimizer, spec.weight_decay, spec.probe_epochs, spec.probe_lr) == ("adam", 1e-6, 500, (1e-2, 1e-6))
    assert paper_differences(spec) == {}


def test_the_paper_preset_covers_every_benchmark_and_both_numbers_of_positives() -> None:
    cells = {spec.cell for spec in load_project({"preset": "paper"}).runs}
    four = ("cifar10", "cifar100", "stl10", "tiny_imagenet")
    methods = ("simclr", "byol", "wmse-2", "wmse-4", "random", "pixels")
    assert {f"{b}/{m}" for b in four for m in methods} <= cells
    assert {"imagenet100/wmse-2", "imagenet100/wmse-4", "imagenet/wmse-4", "imagenet/wmse-4@400-epochs"} <= cells


def test_views_follow_the_benchmarks_recipe() -> None:
    cifar, imagenet = make_spec("cifar10/wmse-2", 0), make_spec("imagenet100/wmse-2", 0)
    assert (cifar.jitter, cifar.grayscale_p, cifar.blur_p) == ((0.4, 0.4, 0.4, 0.1), 0.1, 0.0)
    assert (imagenet.jitter, imagenet.grayscale_p, imagenet.blur_p) == ((0.8, 0.8, 0.8, 0.2), 0.2, 0.5)
    assert imagenet.crop_scale == (0.08, 1.0)
    assert (imagenet.eval_resize, imagenet.view_size) == (256, 224)


@pytest.mark.parametrize(("d", "images"), [(3, 256), (6, 128), (8, 128), (16, 128)])
def test_other_numbers_of_positives_keep_the_number_of_views(d: int, images: int) -> None:
    assert make_spec(f"cifar10/wmse-{d}", 0).batch_size == images


@pytest.mark.parametrize(
    ("preset", "missing"),
    [("tour", {"wmse-2@w-size-x2", "wmse-2@w-size-x4", "wmse-2@w-iter-4"}), ("paper", set())],
)
def test_every_experiment_is_in_the_preset_with_its_methods(preset: str, missing: set[str]) -> None:
    labels = {spec.label for spec in load_project({"preset": preset}).runs}
    for name, experiment in experiments().items():
        assert set(experiment["methods"]) - labels == missing & set(experiment["methods"]), name
        assert {"random", "pixels"} <= set(experiment["methods"]), name


def test_the_tour_goes_on_from_the_runs_of_quick() -> None:
    quick, tour = ({spec.run for spec in load_project({"preset": preset}).runs} for preset in ("quick", "tour"))
    assert quick < tour


def test_a_value_for_all_methods_leaves_a_variant_what_it_is() -> None:
    runs = {spec.label: spec for spec in load_project({"preset": "tour"}).runs if spec.benchmark == "garments"}
    assert [runs[f"wmse-2{name}"].w_iter for name in ("", "@w-iter-1", "@w-iter-2", "@euclidean")] == [4, 1, 2, 4]
    named = load_project({"preset": "tour", "parameters": {"*/*@w-iter-2": {"w_iter": 3}}})
    assert named.find("garments/wmse-2@w-iter-2/seed0").w_iter == 3
    small = {spec.label: spec.epochs for spec in load_project({"preset": "small"}).runs}
    assert (small["simclr"], small["simclr@short"]) == (2, 1)


def test_relative_values_follow_recipe_preset_and_user() -> None:
    def epochs(label: str, *overrides: dict[str, Any]) -> int:
        return make_spec(f"cifar10/{label}", 0, overrides).epochs

    assert [epochs(f"wmse-{d}@equal-views") for d in (2, 3, 4, 6, 8)] == [1000, 667, 500, 333, 250]
    assert epochs("simclr@short") == 200  # Table 4 of the paper
    assert epochs("wmse-4@equal-views", {"epochs": 60, "lr_drops": []}) == 30
    assert epochs("simclr@short", {"epochs": 2, "lr_drops": []}) == 1  # never 0
    assert make_spec("imagenet/wmse-4@400-epochs", 0).epochs == 400
    assert [make_spec(f"cifar10/wmse-2@w-size-{x}", 0).w_size for x in ("x2", "x4")] == [256, 512]
    assert make_spec("cifar10/wmse-2", 0, [{"lr": "* 0.5"}]).lr == 0.0015


def test_the_rate_of_imagenet_is_written_before_its_square_root_scaling() -> None:
    """SimCLRv2's 0.075 * sqrt(4096), with 0.1 in its place for W-MSE; the miniature and every other batch follow."""
    assert [make_spec(f"{b}/simclr", 0).lr for b in ("imagenet", "imagenet_mini")] == [4.8, 4.8]
    assert [make_spec(f"{b}/wmse-{d}", 0).lr for b in ("imagenet", "imagenet_mini") for d in (2, 4)] == [6.4] * 4
    quick = next(spec for spec in load_project({"preset": "quick"}).runs if spec.cell == "imagenet_mini/wmse-4")
    assert (quick.batch_size, quick.lr) == (32, pytest.approx(0.5657, abs=1e-4))

    def rate(*overrides: dict[str, Any]) -> float:
        return make_spec("imagenet/wmse-4", 0, overrides).lr

    assert rate({"batch_size": 1024}) == 3.2
    assert rate({"batch_size": "* 0.25", "lr": "* 0.5"}) == 1.6
    assert rate({"lr": "0.3*sqrt(batch_size)"}, {"batch_size": 256}) == pytest.approx(4.8)
    assert rate({"lr": 0.3}, {"batch_size": 256}) == 0.3
    differences = paper_differences(make_spec("imagenet/wmse-4", 0, [{"batch_size": 1024}]))
    assert differences["lr"] == {"run": 3.2, "paper": 6.4}


def test_variants_of_the_paper_depart_from_its_recipe_only_where_a_preset_does() -> None:
    spec = make_spec("cifar10/wmse-2@w-size-x2", 0)
    assert paper_differences(spec) == {}
    spec = make_spec("cifar10/wmse-8@equal-views", 0, [{"epochs": 240}])
    assert paper_differences(spec) == {"epochs": {"run": 60, "paper": 250}}


def test_only_wmse_whitens_unless_told_to() -> None:
    labels = ["wmse-2", "simclr", "byol", "simclr@short-whitened", "wmse-2@batch-norm", "wmse-2@no-whitening"]
    found = [make_spec(f"cifar10/{label}", 0).resolved_whitening for label in labels]
    assert found == ["cholesky", "identity", "identity", "cholesky", "batch_norm", "identity"]
    with pytest.raises(ConfigError, match="'cholesky' is not possible for byol"):
        make_spec("cifar10/byol", 0, [{"whitening": "cholesky"}])


def test_pixels_of_imagenet_are_thumbnails() -> None:
    assert {make_spec(f"{b}/pixels", 0).view_size for b in ("imagenet", "imagenet100")} == {32}
    assert make_spec("imagenet/random", 0).view_size == 224


def test_every_benchmark_with_a_recipe_has_a_data_set_and_the_reverse() -> None:
    assert sorted(benchmarks()) == sorted(SOURCES)


def test_two_experiments_cannot_have_a_variant_of_the_same_name() -> None:
    blocks = {"one": {"variants": {"long": {"epochs": 9}}}, "two": {"variants": {"short": {}, "long": {"epochs": 8}}}}
    with pytest.raises(ConfigError, match="'two' is not the first with a variant 'long'"):
        merge_variants(blocks)
    del blocks["two"]["variants"]["long"]
    assert merge_variants(blocks) == {"long": {"epochs": 9}, "short": {}}


def test_a_reduced_run_says_what_differs_from_the_paper() -> None:
    spec = make_spec("cifar10/wmse-4", 0, [{"epochs": 60, "width": 16, "eval_every": 1}])
    assert paper_differences(spec) == {"epochs": {"run": 60, "paper": 1000}, "width": {"run": 16, "paper": 64}}
