"""From the configuration to the runs: overrides, selections, and one clear message for whatever is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from wmse.config import load_project
from wmse.errors import ConfigError

# The quick preset with fewer cells.
METHODS = ["simclr", "wmse-2", "wmse-4", "random", "pixels"]
QUICK = {"preset": "quick", "experiments": [{"benchmarks": ["fashion_mnist"], "methods": METHODS}]}


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


def _cell(**parameters: Any) -> dict[str, Any]:
    return {"parameters": {"fashion_mnist/wmse-4": parameters}}


def test_processes_and_nodes_are_settings_of_the_machine_by_pattern() -> None:
    several = {"processes": {"*": 2, "cifar10/wmse-4": 4}, "nodes": {"cifar10/*": 2}}
    plain, project = (load_project({"preset": "paper", **given}) for given in ({}, several))
    assert [run.hash for run in project.runs] == [run.hash for run in plain.runs]
    placed = {run.cell: (project.processes(run), project.nodes(run)) for run in project.runs}
    assert placed["cifar10/wmse-4"] == (4, 2)
    assert placed["cifar100/wmse-4"] == (2, 1)


def test_a_loss_is_of_sub_batches_where_each_process_can_have_as_many() -> None:
    project = load_project({"preset": "paper"})
    spec = project.find("imagenet/wmse-4/seed0")  # 16 sub-batches of 256
    assert [spec.loss_over(processes) for processes in (1, 16, 32)] == ["sub-batches", "sub-batches", "batch"]
    assert project.find("stl10/wmse-2/seed0").loss_over(2) == "batch"  # four slicings
    assert project.find("cifar10/byol/seed0").loss_over(2) == "images"
    with pytest.raises(ConfigError, match=r"must divide the batch of 4096 images, got 3; allowed: 1, 2, 4, 8"):
        spec.check_processes(3)
    with pytest.raises(ConfigError, match=r"nodes: must divide the 8 processes, got 3; allowed: 1, 2, 4, 8"):
        spec.check_processes(8, 3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preset": "qick"}, ["'preset'", "qick", "did you mean 'quick'", "cpu", "paper", "tour"]),
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
        (_cell(lr="0.1 * sqrt(batch)"), ["lr must be a number or 'NUMBER * sqrt(batch_size)'", "'0.1 * sqrt(batch)'"]),
        (_cell(lr="0.1 * sqrt(batch_size)", batch_size=-64), ["batch_size must be", "got -64"]),
        (_cell(lr="0.1 * sqrt(batch_size)", batch_size="x"), ["batch_size must be an integer", "got 'x'"]),
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
