"""From the configuration to the runs: recipes, overrides, hashes, and one clear message for whatever is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

from wmse.config import RunSpec, benchmarks, experiments, load_project, make_spec, paper_differences
from wmse.config.recipes import merge_variants
from wmse.config.spec import FIELDS
from wmse.datasets import SOURCES
from wmse.errors import ConfigError

# The quick preset with fewer cells.
METHODS = ["simclr", "wmse-2", "wmse-4", "random", "pixels"]
QUICK = {"preset": "quick", "experiments": [{"benchmarks": ["fashion_mnist"], "methods": METHODS}]}

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
    assert {f"{b}/{m}" for b in four for m in (*METHODS, "byol")} <= cells
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


def test_a_hash_depends_on_every_parameter_and_on_nothing_else() -> None:
    spec = make_spec("cifar10/wmse-4", 0)
    assert spec.hash == make_spec("cifar10/wmse-4", 0, [{"lr": 0.003}]).hash
    others = [make_spec("cifar10/wmse-4", 1), make_spec("cifar10/wmse-4", 0, [{"lr": 0.004}])]
    assert len({spec.hash, *(other.hash for other in others)}) == 3
    assert RunSpec.from_dict(spec.compact()) == RunSpec.from_dict(spec.to_dict()) == spec


# Finished runs are found by these hashes: if one of them changes, the results of every user are orphaned.
KNOWN = [
    "cifar10/wmse-4/seed0-705bd1b8",
    "cifar10/random/seed0-2dd5b5a4",
    "fashion_mnist/byol/seed0-d9beca86",
    "imagenet/wmse-4/seed0-9a2c7a91",
    "imagenet100/pixels/seed0-482e9d64",
    "imagenet_mini/wmse-2/seed0-452ac665",
    "stl10/simclr/seed0-8ef48bbe",
    "tiny_imagenet/wmse-2/seed0-0ff206da",
]


@pytest.mark.parametrize("run", KNOWN)
def test_a_known_hash_stays(run: str) -> None:
    cell, seed = run.rsplit("/", 1)
    assert make_spec(cell, int(seed[4:].partition("-")[0])).run == run


def test_the_committed_results_are_runs_of_their_preset() -> None:
    found = sorted(ROOT.glob("results/reference/cpu/runs/*/*/*/result.json"))
    assert len(found) == 8
    runs = {spec.run: spec for spec in load_project({"preset": "cpu", "seeds": [0, 1]}).runs}
    for path in found:
        result = json.loads(path.read_text())
        assert runs[result["run"]] == RunSpec.from_dict(result["spec"])
        assert runs[result["run"]].hash == result["spec_hash"]


def test_the_last_matching_pattern_wins_and_the_user_wins_over_the_preset() -> None:
    parameters = {"*": {"epochs": 9}, "fashion_mnist/wmse-4": {"epochs": 11}}
    runs = load_project({**QUICK, "parameters": parameters}).runs
    assert {spec.label: spec.epochs for spec in runs} == {
        "simclr": 9,
        "wmse-2": 9,
        "wmse-4": 11,
        "random": 0,
        "pixels": 0,
    }
    assert all(spec.width == 8 for spec in runs if spec.trained)


def test_overriding_one_run_changes_no_other() -> None:
    before = {spec.label: spec.hash for spec in load_project(QUICK).runs}
    changed = load_project({**QUICK, "parameters": {"*/wmse-2": {"lr": 0.004}}}).runs
    assert [spec.label for spec in changed if spec.hash != before[spec.label]] == ["wmse-2"]


def test_training_parameters_do_not_touch_the_baselines() -> None:
    before = {spec.label: spec.hash for spec in load_project(QUICK).runs}
    changed = load_project({**QUICK, "parameters": {"*": {"lr": 0.004, "epochs": 4}}}).runs
    same = {spec.label for spec in changed if spec.hash == before[spec.label]}
    assert same == {"random", "pixels"}


def test_several_seeds_and_selections() -> None:
    config = {**QUICK, "seeds": [3, 5], "methods": ["wmse-4", "random"]}
    runs = [spec.run.rsplit("-", 1)[0] for spec in load_project(config).runs]
    assert runs == [f"fashion_mnist/{m}/seed{s}" for m in ("wmse-4", "random") for s in (3, 5)]


def test_the_command_lines_strings_become_numbers() -> None:
    # What Snakemake makes of: --config seeds='[1]' parameters='{"*": {"lr": 1e-3, "normalize": false}}'
    config = {**QUICK, "seeds": ["1"], "parameters": {"*": {"lr": "1e-3", "normalize": "false"}}}
    spec = load_project(config).runs[1]
    assert (spec.seed, spec.lr, spec.normalize) == (1, 0.001, False)


def test_a_variant_is_a_cell_of_its_own() -> None:
    config = {
        **QUICK,
        "variants": {"euclidean": {"normalize": False}},
        "experiments": [{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2", "wmse-2@euclidean"]}],
    }
    plain, euclidean = load_project(config).runs
    assert (plain.normalize, euclidean.normalize) == (True, False)
    assert euclidean.cell == "fashion_mnist/wmse-2@euclidean"


def test_a_named_experiment_brings_its_methods_and_may_have_seeds_of_its_own() -> None:
    blocks = [
        {"experiment": "euclidean", "benchmarks": ["fashion_mnist"]},
        {"benchmarks": ["fashion_mnist"], "methods": ["wmse-2"], "seeds": [7]},
    ]
    runs = load_project({**QUICK, "experiments": blocks, "seeds": [4]}).runs
    found = [(spec.label, spec.seed, spec.normalize) for spec in runs if spec.trained]
    assert found == [("wmse-2", 4, True), ("wmse-2", 7, True), ("wmse-2@euclidean", 4, False)]


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_every_experiment_is_in_the_preset_with_all_its_methods(preset: str) -> None:
    labels = {spec.label for spec in load_project({"preset": preset}).runs}
    for name, experiment in experiments().items():
        assert set(experiment["methods"]) <= labels, name
        assert {"random", "pixels"} <= set(experiment["methods"]), name


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


def test_the_configuration_needs_no_data_set_parser_and_no_heavy_package() -> None:
    code = (
        "import sys, wmse.config\n"
        "heavy = {'numpy', 'torch', 'http', 'tarfile', 'PIL', 'wmse.datasets', 'wmse.methods'}\n"
        "wmse.config.load_project({'preset': 'paper'})\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_two_experiments_cannot_have_a_variant_of_the_same_name() -> None:
    blocks = {"one": {"variants": {"long": {"epochs": 9}}}, "two": {"variants": {"short": {}, "long": {"epochs": 8}}}}
    with pytest.raises(ConfigError, match="'two' is not the first with a variant 'long'"):
        merge_variants(blocks)
    del blocks["two"]["variants"]["long"]
    assert merge_variants(blocks) == {"long": {"epochs": 9}, "short": {}}


def test_every_parameter_says_what_it_means_and_numbers_have_bounds() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["meaning"], name
        number = field.type.startswith(("int", "float", "tuple"))
        assert (field.metadata["low"] is not None) == number, name


def test_a_step_costs_the_same_unless_a_parameter_of_the_step_differs() -> None:
    spec = make_spec("cifar10/wmse-4", 0)
    for change in ({"seed": 3}, {"epochs": 7}, {"lr": 1.0}, {"lr_drops": ()}, {"probe_lr": (1.0, 0.5)}, {"knn_k": 9}):
        assert dataclasses.replace(spec, **change).same_step() == spec.same_step()
    for change in (
        {"method": "byol"},
        {"d": 2},
        {"batch_size": 512},
        {"width": 8},
        {"precision": "fp32"},
        {"w_iter": 4},
    ):
        assert dataclasses.replace(spec, **change).same_step() != spec.same_step()
    assert dataclasses.replace(spec, whitening="cholesky").same_step() == spec.same_step()


def test_what_decides_a_baseline_changes_its_hash() -> None:
    def changed(method: str, **parameters: Any) -> bool:
        return make_spec(f"cifar10/{method}", 0, [parameters]).hash != make_spec(f"cifar10/{method}", 0).hash

    for parameters in ({"knn_k": 9}, {"probe_epochs": 9}, {"view_size": 16}, {"eval_resize": 40}):
        assert changed("random", **parameters)
        assert changed("pixels", **parameters)
    for parameters in ({"width": 8}, {"arch": "resnet50"}, {"stem": "small"}, {"precision": "fp32"}):
        assert changed("random", **parameters)
        assert not changed("pixels", **parameters)


def test_a_reduced_run_says_what_differs_from_the_paper() -> None:
    spec = make_spec("cifar10/wmse-4", 0, [{"epochs": 60, "width": 16, "eval_every": 1}])
    assert paper_differences(spec) == {"epochs": {"run": 60, "paper": 1000}, "width": {"run": 16, "paper": 64}}


def _cell(**parameters: Any) -> dict[str, Any]:
    return {"parameters": {"fashion_mnist/wmse-4": parameters}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preset": "qick"}, ["'preset'", "qick", "did you mean 'quick'", "cpu", "paper"]),
        ({"presett": "quick"}, ["unknown key 'presett'", "did you mean 'preset'"]),
        ({"seeds": []}, ["'seeds'"]),
        ({"seeds": [1, 1]}, ["'seeds'"]),
        ({"seeds": ["a"]}, ["'seeds.0'", "integer"]),
        ({"device": "gpu"}, ["'device'", "auto, cpu, cuda"]),
        ({"threads": 0}, ["'threads'"]),
        ({"checkpoint_seconds": -1}, ["'checkpoint_seconds'"]),
        ({"keep_checkpoints": 0}, ["'keep_checkpoints'"]),
        ({"parameters": 3}, ["'parameters'", "mapping"]),
        ({"parameters": {"cifar11/*": {}}}, ["cifar11", "did you mean 'cifar1"]),
        ({"parameters": {"wmse-4": {}}}, ["'wmse-4'", "BENCHMARK/METHOD"]),
        ({"parameters": {"*": {"epoch": 3}}}, ["unknown parameter 'epoch'", "did you mean 'epochs'"]),
        ({"parameters": {"*": {"seed": 3}}}, ["'seed' cannot be overridden"]),
        ({"benchmarks": ["cifar10"]}, ["'benchmarks'", "cifar10", "fashion_mnist"]),
        ({"methods": ["byoll"]}, ["'methods'", "byoll", "wmse-4"]),
        ({"experiments": [{"benchmarks": ["mnist"], "methods": ["wmse-2"]}]}, ["benchmark 'mnist'", "cifar10"]),
        ({"experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-1"]}]}, ["wmse-1", "from 2 to 64"]),
        ({"experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2@x"]}]}, ["unknown variant 'x'"]),
        ({"experiments": [{"benchmarks": ["cifar10"], "experiment": "tabel1"}]}, ["'tabel1'", "did you mean 'table1'"]),
        ({"experiments": [{"benchmarks": ["cifar10"]}]}, ["'experiments'", "'methods'", "'experiment'"]),
        (
            {"experiments": [{"benchmarks": ["cifar10"], "methods": ["byol"], "seeds": [-1]}]},
            ["'experiments.0.seeds.0'"],
        ),
        (_cell(whitening="pca"), ["whitening", "auto, batch_norm, cholesky, identity"]),
        ({"parameters": {"*/simclr": {"whitening": "cholesky", "w_size": 16}}}, ["simclr", "w_size (16)"]),
        (_cell(epochs="* x"), ["epochs", "'* x'", "* NUMBER / d"]),
        (_cell(stem="* 2"), ["stem", "numeric"]),
        (_cell(batch_size=100), ["fashion_mnist/wmse-4", "batch_size (100)", "multiple of w_size (32)"]),
        (_cell(w_size=16), ["fashion_mnist/wmse-4", "w_size (16)", "greater than embedding (16)"]),
        (_cell(epochs="ten"), ["epochs must be an integer", "'ten'"]),
        (_cell(epochs=0), ["epochs must be at least 1"]),
        (_cell(epochs=1), ["lr_drops", "between 1 and epochs - 1"]),
        (_cell(epochs=True), ["epochs must be an integer"]),
        (_cell(lr=float("nan")), ["lr must be at least 0"]),
        (_cell(jitter=[0.4, 0.4]), ["jitter must be a list of 4 numbers"]),
        (_cell(jitter=[0.4, 0.4, 0.4, 0.9]), ["hue"]),
        (_cell(crop_scale=[1.0, 0.2]), ["crop_scale", "low <= high"]),
        (_cell(optimizer="sgd"), ["optimizer", "adam, lars"]),
        (_cell(precision="fp16"), ["precision", "bf16"]),
        (_cell(eval_resize=8), ["eval_resize (8)", "view_size (16)"]),
    ],
)
def test_bad_configuration_gives_one_message_that_names_key_and_allowed_values(
    config: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_project({**QUICK, **config})
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
