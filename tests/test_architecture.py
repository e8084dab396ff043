"""The shape of the package: who may import whom, what stays free of torch, and how long a module may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from builders import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "wmse").rglob("*.py"))
}
LONGEST = 450  # Lines of a module that a reader still takes in.
TORCH_FREE = ("wmse.cli", "wmse.config", "wmse.runs", "wmse.datasets", "wmse.report", "wmse.watch", "wmse.workflow")


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports anywhere, in functions too, but not for type checking alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    unseen: list[ast.AST] = [tree]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unseen += node.orelse
            continue
        unseen += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{name.name}" for name in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return found & MODULES.keys() - {module}


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(module) for module in MODULES}
    assert graph["wmse.cli"] >= {"wmse.errors"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_module_is_too_long() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST} == {}


def loaded_by(module: str) -> set[str]:
    """The top-level packages and the modules of this one that importing a module loads, in a fresh interpreter."""
    command = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", TORCH_FREE)
def test_what_plans_and_reports_does_not_wait_for_torch(package: str) -> None:
    inside = [name for name in MODULES if f"{name}.".startswith(f"{package}.")]
    assert "torch" not in loaded_by(", ".join(inside))


def test_the_package_itself_and_its_help_load_nothing_heavy() -> None:
    code = "import wmse, wmse.cli; print(wmse.cli.build_parser().format_help())"
    heavy = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "numba", "yaml", "PIL"}
    for command in ("import wmse", code):
        command = f"{command}\nimport sys; assert not {heavy} & set(sys.modules), set(sys.modules)"
        subprocess.run([sys.executable, "-c", command], check=True, capture_output=True)


def test_the_configuration_knows_no_data_set_no_array_and_no_network() -> None:
    inside = [name for name in MODULES if name.startswith("wmse.config")]
    loaded = loaded_by(", ".join(inside))
    assert not loaded & {"numpy", "torch", "http.client", "tarfile", "pandas"}
    assert not any(name.startswith("wmse.datasets") for name in loaded)


def test_numba_is_loaded_only_where_a_loop_is_due() -> None:
    assert "numba" not in loaded_by("wmse.training, wmse.views, wmse.probes, wmse.losses")
