"""Somebody's own images through the whole project: command by command, and in the workflow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.folders import encoded, picture, write_classes
from builders.raw import put
from builders.results import read_csv
from builders.workflow import TINY, snakemake
from wmse.cli import main
from wmse.config import load_project, recipes
from wmse.datasets import SOURCES
from wmse.errors import ConfigError

QUICK = {**TINY, "epochs": 2, "batch_size": 32, "w_size": 16, "embedding": 4}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    for name in ("pets", "wild", "few"):
        SOURCES.pop(name, None)
        recipes()["benchmarks"].pop(name, None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two data sets, of which one has no labels, and a configuration that takes seconds."""
    write_classes(tmp_path / "pets", {"cat": 40, "dog": 40})
    write_classes(tmp_path / "wild", {"": 40}, seed=500)
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, **settings: Any) -> dict[str, Any]:
    config = {
        "datasets": {
            "pets": {"folder": "pets", "image_size": 16, "title": "My pets"},
            "wild": {"folder": "wild", "image_size": 16, "store": "files"},
        },
        "experiments": [
            {"benchmarks": ["pets"], "methods": ["wmse-2", "random"]},
            {"benchmarks": ["wild"], "methods": ["wmse-2", "wmse-2@on-pets"]},
        ],
        "variants": {"on-pets": {"evaluate_on": "pets"}},
        "device": "cpu",
        "channels_last": False,
        "parameters": {"*": QUICK},
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return config


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ({"pets": {"folder": "pets"}}, "'image_size' is a required property"),
        ({"pets": {"folder": "gone", "image_size": 16}}, "gone: no such folder"),
        ({"pets": {"folder": "pets", "image_size": 16, "colour": 1}}, "unknown key 'colour'"),
        ({"cifar10": {"folder": "pets", "image_size": 16}}, "'cifar10' is a benchmark of this package"),
        ({"My Pets": {"folder": "pets", "image_size": 16}}, "My Pets"),
    ],
)
def test_a_mistake_is_one_message(project: Path, datasets: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_project(write_config(project, datasets=datasets))
    assert words in str(error.value)


@pytest.mark.parametrize(("size", "stem"), [(32, "cifar"), (64, "small"), (224, "imagenet")])
def test_the_recipe_follows_from_size_count_and_preset(project: Path, size: int, stem: str) -> None:
    def spec(preset: str, label: str = "wmse-4", **settings: Any) -> Any:
        datasets = {"pets": {"folder": "pets", "image_size": size}}
        experiments = [{"benchmarks": ["pets"], "methods": [label]}]
        config = write_config(project, preset=preset, datasets=datasets, experiments=experiments, **settings)
        return load_project(config).runs[0]

    paper = spec("paper", parameters={})
    assert (paper.stem, paper.view_size, paper.width) == (stem, size, 64)
    assert paper.batch_size == paper.w_size == 32  # half of the 64 images: 128 and 256 are too many
    quick = spec("quick", parameters={})
    assert (quick.stem, quick.view_size, quick.width, quick.epochs) == (stem, 32, 16, 625)
    assert spec("quick", parameters={"pets/*": {"epochs": 60}}).epochs == 60
    for label in ("wmse-3", "wmse-8", "simclr", "byol"):
        assert spec("paper", label, parameters={}).batch_size <= 64


def test_a_recipe_for_two_labelled_images(project: Path) -> None:
    for name in ("cat-0.jpg", "cat-1.png", "cat-2.gif"):
        put(project / "few/cat" / name, (project / "pets/cat" / name).read_bytes())
    for i in range(20):
        put(project / f"few/{i}.png", encoded(picture(i), "png"))
    few = {"datasets": {"few": {"folder": "few", "image_size": 16}}}
    config = write_config(project, **few, experiments=[{"benchmarks": ["few"], "methods": ["wmse-2"]}], parameters={})
    (spec,) = load_project(config).runs
    assert (spec.knn_k, spec.w_size, spec.embedding, spec.batch_size) == (2, 8, 4, 8)


def test_the_hash_is_that_of_the_images_and_not_of_where_they_lie(project: Path) -> None:
    def runs() -> list[str]:
        return [spec.run for spec in load_project(yaml.safe_load((project / "config.yaml").read_text())).runs]

    before = runs()
    (project / "pets").rename(project / "elsewhere")
    (project / "pets").symlink_to("elsewhere")
    assert runs() == before
    put(project / "elsewhere/cat/new.png", encoded(picture(1), "png"))
    after = runs()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True, False]


def test_the_digests_of_a_run_cannot_be_set_by_hand(project: Path) -> None:
    with pytest.raises(ConfigError, match="'outside' cannot be overridden"):
        load_project(write_config(project, parameters={"*": {**QUICK, "outside": ["pets:0"]}}))


# --- commands ---------------------------------------------------------------------------------------------------------


def test_by_hand_and_after_a_change_of_the_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = ["pretrain", "pets/wmse-2/seed0", "--threads", "1", "--channels-last", "false"]
    assert main(["prepare", "pets"]) == 0
    said = capsys.readouterr().out
    for words in (
        "64 images to pretrain on",
        "2 classes with 64 for training and 16 for testing",
        "recipe derived from",
    ):
        assert words in said
    assert main(training) == 0
    assert main(["evaluate", "pets/wmse-2/seed0", "--threads", "1"]) == 0
    (result,) = (project / "results/runs/pets").rglob("result.json")
    content = json.loads(result.read_text())
    (own,) = content["spec"]["outside"]
    digest = json.loads((project / "data/pets/prepared/manifest.json").read_text())["own"]["digest"]
    assert own == f"pets:{digest[:16]}"
    assert content["metrics"]["linear_top1"] > 50
    assert main(["verify"]) == 0

    put(project / "pets/cat/new.png", encoded(picture(1), "png"))
    capsys.readouterr()
    assert main(training) == 1
    assert "wmse prepare pets" in capsys.readouterr().err
    assert main(["prepare", "pets"]) == 0
    assert "has changed" in capsys.readouterr().out
    assert main(["verify"]) == 0  # the older run is as it was, and so are its records
    assert main(training) == 0
    assert len(list((project / "results/runs/pets").rglob("encoder.safetensors"))) == 2


def test_estimates_know_folders_that_nobody_has_read(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--memory", "--json"]) == 0
    estimated = json.loads(capsys.readouterr().out)["runs"]
    assert [run["run"] for run in estimated] == [
        *("pets/wmse-2/seed0", "pets/random/seed0", "wild/wmse-2/seed0", "wild/wmse-2@on-pets/seed0")
    ]
    assert main(["estimate", "--seconds", "0.1", "--json", "--threads", "1", "--channels-last", "false"]) == 0
    wild = json.loads(capsys.readouterr().out)["runs"][2]
    assert (wild["steps"], wild["evaluations"], wild["evaluation_hours"]) == (2, 0, 0)


# --- the workflow -----------------------------------------------------------------------------------------------------


def test_the_workflow_with_labels_without_and_on_other_images(project: Path) -> None:
    done = snakemake(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recipe derived from that of cifar10" in done.stdout + done.stderr
    tables = (project / "results/tables.md").read_text()
    own = tables[tables.index("## My pets\n") :].split("\n## ")[0]
    assert "W-MSE 2" in own
    assert "paper" not in own
    assert "CIFAR-10" not in tables
    metrics = {
        path.parts[-3]: json.loads(path.read_text())["metrics"]
        for path in (project / "results/runs/wild").rglob("result.json")
    }
    assert metrics["wmse-2"] == {}
    assert metrics["wmse-2@on-pets"]["linear_top1"] > 50
    wild = [row for row in read_csv(project / "results/tables/table1.csv") if row["section"] == "wild"]
    assert {row["variant"] for row in wild if row["metric"] == "knn5_top1" and row["ours_mean"]} == {"on-pets"}

    again = snakemake(project)
    assert "Nothing to be done" in again.stdout + again.stderr
    os.utime(project / "pets/cat/cat-0.jpg", ns=(1, 1))  # a date alone trains nothing again
    touched = snakemake(project, "-n")
    assert "Nothing to be done" in touched.stdout + touched.stderr
    assert "`wmse prepare pets` reads the images again" in touched.stdout + touched.stderr
    put(project / "pets/cat/new.png", encoded(picture(1), "png"))
    planned = snakemake(project, "-n").stdout
    jobs = dict(
        line.split() for line in planned[planned.index("Job stats") :].splitlines()[3:] if len(line.split()) == 2
    )
    assert {name: jobs.get(name) for name in ("prepare_folder", "pretrain", "evaluate")} == {
        "prepare_folder": "1",
        "pretrain": "2",  # on pets, and what is evaluated on pets
        "evaluate": "3",
    }
