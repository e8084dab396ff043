"""The environment files, the image's recipe and the scripts that make them agree with each other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

import wmse
from builders import ROOT


def script(path: str) -> ModuleType:
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(lock: str) -> dict[str, str]:
    """Name -> version of the requirements of a lock file that this Python needs."""
    lines = (ROOT / lock).read_text().replace("\\\n", "").splitlines()
    found = [Requirement(line.split(" --hash")[0]) for line in lines if line[:1].isalnum()]
    chosen = [r for r in found if not r.marker or r.marker.evaluate()]
    return {r.name: str(r.specifier).removeprefix("==") for r in chosen}


def test_the_conda_environment_is_the_lock_file() -> None:
    text = (ROOT / "envs/wmse.yaml").read_text()
    assert text == script("tools/conda_env.py").environment((ROOT / "envs/runtime.lock").read_text())
    *_, pip = yaml.safe_load(text)["dependencies"]
    assert {f"{k}=={v}" for k, v in pins("envs/runtime.lock").items()} <= {line.split(" ")[0] for line in pip["pip"]}
    assert all("--hash=sha256:" in line for line in pip["pip"])


def test_the_image_installs_what_the_environment_installs() -> None:
    assert pins("envs/runtime.lock").items() <= pins("envs/requirements.lock").items()


def test_a_cluster_gets_the_executor_and_otherwise_what_the_environment_installs() -> None:
    more = dict(pins("envs/slurm.lock").items() - pins("envs/requirements.lock").items())
    assert set(more) == {"snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep"}


def test_the_site_is_built_with_what_the_environment_installs() -> None:
    environment, docs = pins("envs/requirements.lock"), pins("envs/docs.lock")
    assert pins("envs/runtime.lock").items() <= docs.items()
    assert {name: docs[name] for name in docs.keys() & environment} == {
        name: environment[name] for name in docs.keys() & environment
    }


@pytest.mark.parametrize("lock", sorted(path.name for path in (ROOT / "envs").glob("*.lock")))
def test_no_lock_names_where_packages_come_from(lock: str) -> None:
    assert [line for line in (ROOT / "envs" / lock).read_text().splitlines() if "://" in line or line[:1] == "-"] == []


def test_the_image_names_this_version() -> None:
    assert f"\nARG VERSION={wmse.__version__}\n" in (ROOT / "Dockerfile").read_text()


def test_the_image_gets_every_file_that_its_recipe_copies() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    assert {name for names in copies if not names[0].startswith("--from") for name in names} == kept


def test_the_bill_of_materials_lists_this_environment() -> None:
    sbom = script("docker/sbom.py")
    packages = {name: (version, licence) for name, version, licence in sbom.python_packages()}
    assert packages["numpy"][0] == pins("envs/runtime.lock")["numpy"]
    assert "BSD" in packages["numpy"][1]
    assert packages["wmse-repro"][1] == "MIT"
    entry = sbom.component("pypi", "x", "1+local", "")
    assert entry["purl"] == "pkg:pypi/x@1%2Blocal"
    assert entry["licenses"] == [{"license": {"name": "see the package's copyright file"}}]


def test_debian_licences_are_read_from_both_forms_of_copyright_files(tmp_path: Path) -> None:
    sbom, file = script("docker/sbom.py"), tmp_path / "copyright"
    file.write_text("Files: *\nLicense: MIT\n text\nFiles: a\nLicense: GPL-2+\n")
    assert sbom.debian_licences(file) == ["GPL-2+", "MIT"]
    file.write_text("The text is in /usr/share/common-licenses/LGPL-2.1.\n")
    assert sbom.debian_licences(file) == ["LGPL-2.1"]
    assert sbom.debian_licences(tmp_path / "none") == []


@pytest.fixture
def conda(tmp_path: Path) -> str:
    """A PATH with a `conda` that answers what a dry run asks."""
    places = {"conda_prefix": str(tmp_path), "root_prefix": str(tmp_path), "platform": "linux-64"}
    answer = json.dumps({**places, "get": {"channel_priority": "strict"}})
    program = tmp_path / "bin" / "conda"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
case "$*" in
  *--json*) echo '{answer}' ;;
  *) echo 'conda 25.1.0' ;;
esac
"""
    )
    program.chmod(0o755)
    return f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_every_rule_has_the_conda_environment(tmp_path: Path, conda: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--use-conda", "-n"]
    (tmp_path / "config.yaml").write_text("preset: quick\n")
    environment = {**os.environ, "PATH": conda}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Conda environment" in output
    assert "envs/wmse.yaml will be created" in output
