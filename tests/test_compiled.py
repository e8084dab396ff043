"""What the compilation of the loops does in odd places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wmse import compiled

ONE_VIEW = """
import torch
from wmse.views import ViewRecipe, draw_params, make_view
recipe = ViewRecipe(size=12)
images = torch.arange(3 * 12 * 12).remainder(251).to(torch.uint8).view(1, 3, 12, 12)
print(make_view(images, recipe, draw_params(1, 12, 12, recipe, torch.Generator().manual_seed(0))).sum().item())
"""


def start(home: Path, code: str = ONE_VIEW, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**kept, "HOME": str(home), **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("changed", compiled.SOURCE_FILES)
def test_loops_of_another_text_have_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """numba would load a cached function although one that it calls, in another file, has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in compiled.SOURCE_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    folders = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / changed).write_text(text)
        folders.append(compiled.cache_folder())
    assert folders[0] == folders[2] != folders[1]


def test_every_module_with_loops_is_in_the_caches_name() -> None:
    with_loops = {
        path.relative_to(compiled.PACKAGE).as_posix()
        for path in compiled.PACKAGE.rglob("*.py")
        if "from numba import" in path.read_text()
    }
    assert with_loops <= set(compiled.SOURCE_FILES)


def test_numba_is_not_imported_before_a_loop_is_due(tmp_path: Path) -> None:
    """It takes long, and on a GPU no loop ever is."""
    code = "import sys, wmse.views, wmse.probes, wmse.losses, wmse.methods.wmse; print('numba' in sys.modules)"
    assert result(start(tmp_path, code)) == "False\n"


def test_processes_may_compile_at_once_and_a_damaged_or_unusable_cache_costs_no_run(tmp_path: Path) -> None:
    values = {result(process) for process in [start(tmp_path), start(tmp_path)]}
    files = [path for path in (tmp_path / ".cache" / "wmse-repro").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        path.write_bytes(b"")
    (tmp_path / "file").touch()
    nowhere = start(tmp_path / "file", NUMBA_CACHE_DIR="/proc/nowhere")
    values |= {result(process) for process in [start(tmp_path), nowhere]}
    assert len(values) == 1
