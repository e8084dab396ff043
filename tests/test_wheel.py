"""An installed package works in an empty folder: what `pip install .` and `wmse init` give is enough for the DAG."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from builders import ROOT
from builders.workflow import environment

BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "config.yaml", "wmse", "workflow")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as `pip install --target` makes it; the source is elsewhere."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=skip, symlinks=True)
        else:
            shutil.copyfile(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    shutil.rmtree(source)
    return target


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command that sees the installed package and no other."""
    own = environment(PYTHONPATH=str(installed))
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=own, capture_output=True, text=True, timeout=300
    )


def test_the_package_is_typed_and_brings_the_loaders_of_exports(installed: Path) -> None:
    assert (installed / "wmse/py.typed").exists()
    assert {path.name for path in (ROOT / "wmse/export").glob("load_*.py")} <= {
        path.name for path in (installed / "wmse/export").iterdir()
    }


def test_a_folder_of_wmse_init_is_all_that_the_workflow_needs(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "wmse", "init")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "workflow"]
    assert (tmp_path / "config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()
    rules = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "workflow").rglob("*") if path.is_file()}
    assert {path: (tmp_path / path).read_bytes() for path in rules} == rules
    runs = run(installed, tmp_path, "wmse", "runs").stdout.splitlines()
    done = run(installed, tmp_path, "snakemake", "--dry-run", "--cores", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"evaluate {len(runs)}" in " ".join((done.stdout + done.stderr).split())
    done = run(installed, tmp_path, "snakemake", "--dry-run", "--cores", "1", "--use-conda")
    assert done.returncode != 0
    assert "--use-conda needs a checkout of the source" in done.stdout + done.stderr


def test_a_job_of_the_installed_workflow_runs(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "wmse", "init", "new/folder").returncode == 0
    folder = tmp_path / "new/folder"
    target = "data/fashion_mnist/prepared/manifest.json"
    done = run(installed, folder, "snakemake", "--cores", "1", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / target).exists()
