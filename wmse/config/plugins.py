"""Methods, augmentations, data sets and experiments from outside the package: modules beside config.yaml, or installed.

What the configuration must know of a module stands in it as literals, which are read without running it: planning waits
for no torch. `load` runs it where something of it is needed.

    METHODS = {"barlow_twins": {"class": "BarlowTwins", "title": "Barlow Twins"}}  # as `methods` in recipes.yaml
    AUGMENTATIONS = {"cutout": {"class": "Cutout"}}
    BENCHMARKS = {"my_images": {"like": "cifar10"}}  # whose recipe is taken; the module has a tuple SOURCES as well
    EXPERIMENTS = {"crops": {...}}  # as in experiments.yaml
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from wmse.config.recipes import AUGMENTATIONS, experiments, paper_variants, recipes, resolve_benchmark
from wmse.errors import ConfigError, show

GROUP = "wmse.plugins"  # Of the entry points of installed packages.
KINDS = {"METHODS": "class", "AUGMENTATIONS": "class", "BENCHMARKS": "like", "EXPERIMENTS": "methods"}  # needed keys
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Plugin:
    """A module, as it is imported, with the sha256 of its source and what it says it has, by kind and name."""

    module: str
    file: Path
    digest: str
    blocks: Mapping[str, Mapping[str, dict[str, Any]]]

    @property
    def name(self) -> str:
        """How a run's specification calls it."""
        return f"{self.module}.py"

    def load(self) -> ModuleType:
        """Run the module. ConfigError: it fails, or Python knows another one of this name."""
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            raise ConfigError(f"{self.file}: cannot be imported ({type(error).__name__}: {error})") from error
        if Path(module.__file__ or "").resolve() != self.file:
            raise ConfigError(f"{self.file}: Python has another module '{self.module}': rename the file")
        return module

    def thing(self, kind: str, name: str) -> Any:
        """The class that a block names. ConfigError if the module has none."""
        wanted = self.blocks[kind][name]["class"]
        if not hasattr(module := self.load(), wanted):
            raise ConfigError(f"{self.file}: {kind}: '{name}': there is no {wanted} in it")
        return getattr(module, wanted)


@functools.cache
def plugins() -> dict[str, Plugin]:
    """Those that are known, by module: the installed ones, and what `add_plugin` has added."""
    known: dict[str, Plugin] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        found = importlib.util.find_spec(point.value)
        if found is None or not found.origin:
            raise ConfigError(f"plugin '{point.name}' of an installed package: no module {point.value}")
        _register(_read(point.value, Path(found.origin)), known)
    return known


def add_plugin(path: Path) -> Plugin:
    """Know the module in a file, or the package in a folder. ConfigError: unreadable, or its names are taken."""
    file = (path / "__init__.py" if path.is_dir() else path).resolve()
    module = path.stem
    if not file.is_file() or not module.isidentifier():
        kind = "Python file that can be imported" if file.is_file() else "Python file: correct the path in config.yaml"
        raise ConfigError(f"key 'plugins': {path}: no such {kind}")
    known = plugins().get(module)
    if known and known.file != file:
        raise ConfigError(
            f"key 'plugins': {path}: there is another plugin '{module}', {known.file}: rename one of them"
        )
    plugin = _read(module, file)
    if plugin != known:
        _register(plugin, plugins())
    place = str(path.resolve().parent)
    if place not in sys.path:
        sys.path.append(place)  # at the end: no plugin replaces a module of others
    return plugin


def owner(kind: str, name: str) -> Plugin | None:
    """The plugin that has a method, augmentation, benchmark or experiment of this name; None: none has."""
    return next((plugin for plugin in plugins().values() if name in plugin.blocks[kind]), None)


def digests_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Name and digest of every plugin that a run with these parameters uses."""
    used = [("METHODS", "method"), ("AUGMENTATIONS", "augmentation")]
    used += [("BENCHMARKS", "benchmark"), ("BENCHMARKS", "evaluate_on")]
    found = (owner(kind, str(spec.get(key, ""))) for kind, key in used)
    return {plugin.name: plugin.digest for plugin in found if plugin}


def _read(module: str, file: Path) -> Plugin:
    try:
        digest = _sha256(file)
        if file.name == "__init__.py":  # a package: of all its files
            names = sorted(file.parent.rglob("*.py"))
            lines = "".join(f"{name.relative_to(file.parent)} {_sha256(name)}\n" for name in names)
            digest = hashlib.sha256(lines.encode()).hexdigest()
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{file}: not a Python module ({error})") from None
    blocks: dict[str, Mapping[str, Any]] = {kind: {} for kind in KINDS}
    for kind, node in _assignments(tree):
        try:
            blocks[kind] = ast.literal_eval(node)
        except (ValueError, TypeError):
            raise ConfigError(
                f"{file}, line {node.lineno}: {kind} must be written out as a literal: the module is not run to read it"
            ) from None
        _check(f"{file}, line {node.lineno}: {kind}", kind, blocks[kind])
    if not any(blocks.values()):
        raise ConfigError(f"{file}: has none of {', '.join(KINDS)}, so that it adds nothing")
    return Plugin(module, file, digest, blocks)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in KINDS and getattr(node, "value", None):
                yield target.id, node.value


def _check(where: str, kind: str, blocks: Any) -> None:
    needed = KINDS[kind]
    if not isinstance(blocks, dict):
        raise ConfigError(f"{where} must map names to blocks")
    for name, block in blocks.items():
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ConfigError(f"{where}: the name {show(name)} must be of the characters a-z, 0-9 and _")
        if not (isinstance(block, dict) and block.get(needed)):
            raise ConfigError(f"{where}: '{name}' must be a mapping with the key '{needed}'")


def _register(plugin: Plugin, known: dict[str, Plugin]) -> None:
    """Add what a plugin has to the recipes and experiments; a plugin that was read before is replaced."""
    books = {"METHODS": recipes()["methods"], "BENCHMARKS": recipes()["benchmarks"]}
    books |= {"EXPERIMENTS": experiments(), "AUGMENTATIONS": AUGMENTATIONS}
    before = known.get(plugin.module)
    for kind, blocks in plugin.blocks.items():
        for name, block in blocks.items():
            if name in books[kind] and not (before and name in before.blocks[kind]):
                raise ConfigError(f"{plugin.file}: {kind}: '{name}' is there already: take another name")
            books[kind][name] = resolve_benchmark(name, block) if kind == "BENCHMARKS" else block
    paper_variants.cache_clear()
    known[plugin.module] = plugin
