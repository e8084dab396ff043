"""Completion: what may stand at the cursor, and that a real bash gets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders import ROOT
from builders.raw import put
from wmse.cli import build_parser, main
from wmse.completion import SCRIPTS, complete

CONFIG = {"experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2", "wmse-2@mine"]}], "variants": {"mine": {}}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration."""
    monkeypatch.chdir(tmp_path)
    return put(tmp_path / "config.yaml", yaml.safe_dump(CONFIG)).parent


def ask(*words: str) -> list[str]:
    return complete(build_parser(), words)


def test_commands_options_and_choices_are_those_of_the_parser() -> None:
    assert {"pretrain", "runs", "doctor", "export"} <= set(ask(""))
    assert ask("comp") == ["compare", "completion"]
    assert ask("--ver") == ["--version"]
    assert ask("export", "--format", "t") == ["timm", "torchscript", "torchvision"]
    assert ask("export", "--format=ti") == ["--format=timm"]
    assert ask("completion", "") == ["bash", "fish", "zsh"]
    assert ask("completion", "bash", "--") == ["--help", "--log", "--plugin"]  # the script's own question is not shown
    assert ask("pretrain", "--compile", "true", "--chan") == ["--channels-last"]
    assert ask("estimate", "--gpus", "1", "2", "--pre") == ["--preset"]
    assert ask("nonsense", "") == []
    assert ask() == ask("")


def test_runs_presets_and_benchmarks_are_those_of_the_configuration(folder: Path) -> None:
    names = ["cifar10/wmse-2/seed0", "cifar10/wmse-2@mine/seed0"]
    assert ask("pretrain", "") == ask("compare", names[0], "") == ask("features", "cifar10/") == names
    assert ask("pretrain", "--log", "file", "--compile=true", "cifar10/wmse-2@") == names[1:]
    assert ask("pretrain", names[0], "") == []
    assert ask("runs", "--preset", "p") == ["paper"]
    assert ask("runs", "--preset=c") == ["--preset=cpu"]
    assert ask("prepare", "cifar") == ["cifar10", "cifar100"]
    put(folder / "other/config.yaml", "preset: cpu\nexperiments: [{ benchmarks: [stl10], methods: [byol] }]")
    assert ask("evaluate", "--root", "other", "") == ask("evaluate", "--root=other", "") == ["stl10/byol/seed0"]
    put(folder / "other/config.yaml", "seeds: [7]")
    assert "cifar10/byol/seed7" in ask("evaluate", "--root", "other", "--preset", "cpu", "cifar10/b")


def test_where_files_belong_or_nothing_can_be_listed_there_is_no_answer(folder: Path) -> None:
    assert ask("report", "") == ask("runs", "--root", "") == ask("init", "") == []
    put(folder / "config.yaml", "preset: [")
    assert ask("pretrain", "") == []
    (folder / "config.yaml").unlink()
    assert ask("pretrain", "") == []
    assert ask("prepare", "stl") == ["stl10"]


def test_every_shell_has_a_script_that_asks(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, text in SCRIPTS.items():
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == text[1:]
        assert f"completion {shell} --words" in text
    assert main(["completion", "zsh", "--words", "runs", "--preset", "q"]) == 0
    assert capsys.readouterr().out == "quick\n"


def test_asking_is_fast() -> None:
    code = (
        "import sys\nfrom wmse.cli import main\nmain(['completion', 'bash', '--words', 'pre'])\n"
        "assert not {'torch', 'yaml', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["prepare", "pretrain"]), done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes(folder: Path) -> None:
    put(folder / "bin/wmse", f'#!/bin/sh\nexec {sys.executable} -m wmse "$@"\n').chmod(0o755)
    lines = {
        "wmse ver": "verify",
        "wmse runs --preset q": "quick",
        "wmse compare cifar10/wmse-2/seed0 cifar10/wmse-2@m": "mine/seed0",  # what bash has cut off is left out
        "wmse runs --preset=q": "quick",
        "wmse pretrain cifar10/wmse-2/seed0  --compile ": "auto false true",
        "wmse report run": "",  # bash goes on with names of files
    }
    calls = "\n".join(f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _wmse; echo ${{COMPREPLY[*]}}" for line in lines)
    program = f"source <(wmse completion bash)\nCOMP_WORDBREAKS=$' \\t\\n\"\\'@><=;|&(:'\n{calls}\ncomplete -p wmse"
    own = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", program], env=own, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [*lines.values(), "complete -o default -F _wmse wmse"]
