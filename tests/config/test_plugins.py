"""Modules from outside the package: what is read of them, whose runs they are part of, and what is wrong with them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import ROOT
from builders.data import tiny_data
from builders.runs import make_trainer, tiny_spec
from wmse.config import load_project, plugins
from wmse.config.plugins import GROUP, add_plugin
from wmse.config.recipes import AUGMENTATIONS, experiments, paper_variants, recipes
from wmse.config.spec import RunSpec
from wmse.errors import ConfigError

METHOD = """
METHODS = {"plain": {"class": "Plain", "title": "Plain W-MSE", "loss_over": "sub-batches",
                     "parameters": {"whitening": "cholesky"}}}
from wmse.methods.wmse import WMSE
class Plain(WMSE):
    pass
"""
NOISE = """
import torch
AUGMENTATIONS = {"noise": {"class": "Noise"}}
class Noise:
    def draw(self, n, size, generator):
        return torch.randn(n, 3, size, size, generator=generator)
    def __call__(self, views, drawn):
        return views + drawn
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test adds outlives it."""
    books = [plugins(), AUGMENTATIONS, experiments(), recipes()["methods"], recipes()["benchmarks"]]
    before, modules = [copy.copy(book) for book in books], set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for book, old in zip(books, before, strict=True):
        book.clear()
        book.update(old)
    paper_variants.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


def runs(folder: Path, *files: str, **settings: Any) -> tuple[RunSpec, ...]:
    blocks = [{"benchmarks": ["fashion_mnist"], "methods": ["plain", "plain-4", "wmse-2"]}]
    return load_project({"plugins": list(files), "experiments": blocks, **settings}, folder).runs


def test_a_run_is_that_of_the_source_that_it_uses_and_of_no_other(tmp_path: Path) -> None:
    write(tmp_path, "own_plain.py", METHOD)
    write(tmp_path, "own_noise.py", NOISE)
    plain, four, ours = runs(tmp_path, "own_plain.py", "own_noise.py")
    assert plain.outside == four.outside == (f"own_plain.py:{plugins()['own_plain'].digest[:16]}",)
    assert ours.outside == ()
    write(tmp_path, "own_noise.py", NOISE + "# another\n")
    assert [spec.hash for spec in runs(tmp_path, "own_plain.py", "own_noise.py")] == [plain.hash, four.hash, ours.hash]
    write(tmp_path, "own_plain.py", METHOD + "# another\n")
    changed = runs(tmp_path, "own_plain.py", "own_noise.py")
    assert [new.hash == old.hash for new, old in zip(changed, (plain, four, ours), strict=True)] == [False, False, True]
    with pytest.raises(ConfigError, match=r"own_plain\.py is not what the run was planned with"):
        RunSpec.from_dict(plain.compact())
    assert "own_plain" not in sys.modules  # planning runs nothing


def test_a_package_counts_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, "own_pack/__init__.py", METHOD)
    write(tmp_path, "own_pack/helper.py", "x = 1\n")
    before = add_plugin(tmp_path / "own_pack").digest
    write(tmp_path, "own_pack/helper.py", "x = 2\n")
    assert add_plugin(tmp_path / "own_pack").digest != before


def test_a_method_of_a_plugin_trains_like_the_one_it_inherits_from(tmp_path: Path) -> None:
    add_plugin(write(tmp_path, "own_plain.py", METHOD))
    losses = []
    for label in ("plain", "wmse-2"):
        trainer = make_trainer(tiny_spec(label), tiny_data(), tmp_path / label)
        losses.append(trainer.step(torch.arange(64)).loss.item())
        trainer.close()
    assert losses[0] == losses[1]


def test_an_augmentation_is_drawn_per_image_view_and_step(tmp_path: Path) -> None:
    add_plugin(write(tmp_path, "own_noise.py", NOISE))
    made = {}
    for name in ("", "noise"):
        trainer = make_trainer(tiny_spec("wmse-2", augmentation=name), tiny_data(), tmp_path / f"run{name}")
        index = torch.arange(64)
        made[name] = torch.stack(trainer._views(index, slice(None)))
        part = torch.stack(trainer._views(index, torch.tensor([5, 3])))
        assert torch.equal(part, made[name][:, [5, 3]])
        trainer.close()
    noise = made["noise"] - made[""]
    assert abs(noise.std().item() - 1) < 0.05
    assert not torch.allclose(noise[0], noise[1])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("own_a.py", "METHODS = {", "not a Python module"),
        ("own_a.py", "x = 1", "adds nothing"),
        ("own_a.py", "METHODS = dict(a=1)", "line 1: METHODS must be written out as a literal"),
        ("own_a.py", "METHODS = {'a': {}}", "with the key 'class'"),
        ("own_a.py", "METHODS = {'A b': {'class': 'A'}}", "must be of the characters"),
        ("own_a.py", "METHODS = {'byol': {'class': 'A'}}", "'byol' is there already"),
        ("own_a.py", "BENCHMARKS = {'mine': {'like': 'cifar'}}", "unknown benchmark 'cifar'"),
        ("my-own.py", METHOD, "no such Python file that can be imported"),
    ],
)
def test_what_is_wrong_with_a_module_is_one_message(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        add_plugin(write(tmp_path, name, text))
    assert words in str(error.value)


def test_a_module_that_fails_and_one_whose_name_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such Python file"):
        add_plugin(tmp_path / "gone.py")
    failing = add_plugin(write(tmp_path, "own_fails.py", METHOD + "1 / 0\n"))
    with pytest.raises(ConfigError, match=r"own_fails\.py: cannot be imported \(ZeroDivisionError"):
        failing.load()
    without = add_plugin(write(tmp_path, "own_without.py", "AUGMENTATIONS = {'b': {'class': 'B'}}"))
    with pytest.raises(ConfigError, match="there is no B in it"):
        without.thing("AUGMENTATIONS", "b")
    taken = add_plugin(write(tmp_path, "json.py", NOISE))
    with pytest.raises(ConfigError, match="Python has another module 'json'"):
        taken.load()


def test_installed_packages_are_found_by_their_entry_points(tmp_path: Path) -> None:
    write(tmp_path, "site/own_installed.py", METHOD)
    info = "site/own_installed-1.dist-info"
    write(tmp_path, f"{info}/METADATA", "Metadata-Version: 2.1\nName: own-installed\nVersion: 1\n")
    write(tmp_path, f"{info}/entry_points.txt", f"[{GROUP}]\nplain = own_installed\n")
    write(tmp_path, "config.yaml", "experiments: [{ benchmarks: [cifar10], methods: [plain] }]")
    found = [str(tmp_path / "site"), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "wmse", "runs", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(METHOD.encode()).hexdigest()
    assert json.loads(done.stdout)["outside"] == [f"own_installed.py:{digest[:16]}"]
