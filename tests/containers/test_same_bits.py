"""A cut-down quick preset (with WHOLE=1 the whole one) in Docker, under Apptainer and here: the same bits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from builders import ROOT
from builders.containers import (
    IMAGE,
    OWNER,
    SIF,
    WHOLE,
    config,
    in_docker,
    needs_apptainer,
    new_folder,
    planned,
    results,
    snakemake,
    succeeded,
)
from wmse.config import RunSpec, load_project, read_yaml

if not IMAGE:
    pytest.skip("containers are tested by `make test-containers`", allow_module_level=True)

SHARED = ["--config", "device=cpu"] if WHOLE else config()  # of the three runs that are compared


@pytest.fixture(scope="module")
def docker_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The shared configuration, computed by `docker run`, and what that printed."""
    folder = new_folder(tmp_path_factory.mktemp("docker"), OWNER)
    return folder, succeeded(in_docker(folder, *SHARED, data=True))


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same in this environment."""
    folder = new_folder(tmp_path_factory.mktemp("plain"))
    return folder, succeeded(snakemake(folder, *SHARED))


@pytest.fixture(scope="module")
def apptainer_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same under Apptainer, with packages on the host's PYTHONPATH that would break every job."""
    folder = new_folder(tmp_path_factory.mktemp("apptainer"))
    poison = folder / "poison" / "torch"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('the host leaks into the container')\n")
    environment = {"PYTHONPATH": str(poison.parent)}
    done = snakemake(folder, "--use-singularity", *SHARED, f"container={SIF}", env=environment)
    return folder, succeeded(done)


def shared_runs() -> list[RunSpec]:
    """The runs of the shared configuration."""
    given = {key: json.loads(value) for key, value in (entry.split("=", 1) for entry in SHARED[3:])}
    return load_project({**read_yaml(ROOT / "config.yaml"), **given}).runs


def bits(folder: Path) -> dict[str, Any]:
    """What must be equal in equal runs: parameters, metrics, losses, weights and data; not times and places."""
    found = {}
    for run, result in results(folder).items():
        encoder = folder / "results/runs" / run / "encoder.safetensors"
        digest = hashlib.sha256(encoder.read_bytes()).hexdigest() if encoder.exists() else None
        loss = result.get("pretrain", {}).get("final_loss") if result.get("pretrain") else None
        found[run] = [result["spec"], result["metrics"], result["data"], loss, digest]
    return found


def test_docker_leaves_tables_that_belong_to_the_caller(docker_folder: tuple[Path, str]) -> None:
    folder, printed = docker_folder
    assert "GPU: none, running on the CPU" in printed
    assert set(results(folder)) == {spec.run for spec in shared_runs()}
    tables = (folder / "results/tables.md").read_text()
    for run, result in results(folder).items():
        assert run in tables
        assert f"{result['metrics']['linear_top1']:.2f}" in tables
        assert result["provenance"]["commit"] == "test-image"
    owners = {f"{p.lstat().st_uid}:{p.lstat().st_gid}" for p in (folder / "results").rglob("*")}
    if os.getuid() == 0:
        assert owners == {OWNER}


@needs_apptainer
def test_every_job_runs_in_the_sif(apptainer_folder: tuple[Path, str]) -> None:
    folder, printed = apptainer_folder
    specs = shared_runs()
    # prepare, pretrain, evaluate; tables, claims, plots, page, dag. `all` has no command
    jobs = len({spec.benchmark for spec in specs}) + sum(spec.trained for spec in specs) + len(specs) + 5
    assert printed.count("Activating apptainer image") + printed.count("Activating singularity image") == jobs
    commits = {result["provenance"]["commit"] for result in results(folder).values()}
    assert commits == {"test-image"}
    assert {p.stem for p in (folder / "results/plots").glob("*.svg")} >= {"dag", "training"}


@needs_apptainer
def test_the_same_bits_in_docker_in_apptainer_and_without(
    docker_folder: tuple[Path, str], apptainer_folder: tuple[Path, str], plain_folder: tuple[Path, str]
) -> None:
    plain = bits(plain_folder[0])
    assert set(plain) == {spec.run for spec in shared_runs()}
    assert bits(docker_folder[0]) == plain
    assert bits(apptainer_folder[0]) == plain


@needs_apptainer
def test_switching_reruns_nothing(
    docker_folder: tuple[Path, str], apptainer_folder: tuple[Path, str], plain_folder: tuple[Path, str]
) -> None:
    docker_, apptainer, plain = docker_folder[0], apptainer_folder[0], plain_folder[0]
    inside = ("--use-singularity", "-n", *SHARED, f"container={SIF}")
    assert not planned(succeeded(snakemake(plain, *inside)))
    assert not planned(succeeded(snakemake(docker_, *inside)))
    assert not planned(succeeded(snakemake(apptainer, "-n", *SHARED)))
    assert not planned(succeeded(snakemake(docker_, "-n", *SHARED)))
    for folder in (plain, apptainer):
        assert not planned(succeeded(in_docker(folder, "-n", *SHARED, data=True)))
