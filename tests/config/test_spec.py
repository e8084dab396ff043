"""The specification of a run: its hash, what its parameters mean, and what they change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from builders import ROOT
from wmse.config import RunSpec, load_project, make_spec
from wmse.config.spec import FIELDS


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
    "imagenet/wmse-4/seed0-dd934eda",
    "imagenet100/pixels/seed0-482e9d64",
    "imagenet_mini/wmse-2/seed0-0f0a244d",
    "stl10/simclr/seed0-8ef48bbe",
    "tiny_imagenet/wmse-2/seed0-0ff206da",
]


@pytest.mark.parametrize("run", KNOWN)
def test_a_known_hash_stays(run: str) -> None:
    cell, seed = run.rsplit("/", 1)
    assert make_spec(cell, int(seed[4:].partition("-")[0])).run == run


def test_the_committed_results_are_runs_of_their_preset() -> None:
    found = sorted(ROOT.glob("results/reference/*/runs/*/*/*/result.json"))
    assert len(found) >= 8
    for path in found:
        preset = path.relative_to(ROOT).parts[2]
        runs = {spec.run: spec for spec in load_project({"preset": preset, "seeds": list(range(5))}).runs}
        result = json.loads(path.read_text())
        assert runs[result["run"]] == RunSpec.from_dict(result["spec"])
        assert runs[result["run"]].hash == result["spec_hash"]


def test_every_parameter_says_what_it_means_and_numbers_have_bounds() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["meaning"], name
        number = field.type.startswith(("int", "float", "tuple[int", "tuple[float"))
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
