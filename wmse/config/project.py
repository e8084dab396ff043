"""From the configuration to the runs: presets, overrides, patterns of cells, and what a run departs from."""

from __future__ import annotations

import fnmatch
import itertools
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmse.config.own import describe_recipe, own_benchmark
from wmse.config.plugins import add_plugin, digests_of, plugins
from wmse.config.recipes import (
    FOLDER,
    add_benchmark,
    baselines,
    benchmarks,
    experiments,
    in_paper,
    paper_parameters,
    paper_variants,
    parse_label,
    recipes,
)
from wmse.config.spec import DIGITS, FIELDS, IDENTITY, RunSpec
from wmse.config.yaml_io import count_values, plain_values, read_yaml, validate
from wmse.errors import ConfigError, DataError, show, unknown
from wmse.image_folders import Survey, folder_set, survey


def make_label(label: str) -> str:
    """The canonical form of a method label: `simclr-2` is `simclr`."""
    method, d, variant = parse_label(label)
    return RunSpec("", method, d, variant).label


def make_spec(
    cell: str, seed: int, overrides: Sequence[Mapping[str, Any]] = (), digests: Mapping[str, str] | None = None
) -> RunSpec:
    """The run of a cell: the paper's recipe with `overrides` applied in order.

    `digests` are those of folders of one's own, by name.

    Raises ConfigError: naming the cell and the key.
    """
    benchmark, _, label = cell.partition("/")
    method, d, variant = parse_label(label)
    for key in (key for override in overrides for key in override):
        if key in (*IDENTITY, "outside"):
            raise ConfigError(f"{cell}: '{key}' cannot be overridden: it is part of the run's name")
    values = paper_parameters(benchmark, method, d, variant, overrides)
    used = {name: digest for name, digest in (digests or {}).items() if name in (benchmark, values.get("evaluate_on"))}
    outside = [f"{name}:{digest[:DIGITS]}" for name, digest in sorted((used | digests_of(values)).items())]
    spec = RunSpec.from_dict({**values, "seed": seed, "outside": outside})
    if method in baselines():
        decides = {name for name, field in FIELDS.items() if method in field.metadata["baselines"]}
        kept = {key: value for key, value in spec.to_dict().items() if key in decides or key in IDENTITY}
        spec = RunSpec.from_dict({**kept, "epochs": 0})
    return spec


def paper_differences(spec: RunSpec) -> dict[str, dict[str, Any]] | None:
    """Parameters in which a run departs from the paper, each with both values; None where the paper has no such run."""
    if not spec.trained or not in_paper(spec.benchmark):
        return None
    paper = RunSpec.from_dict(paper_parameters(spec.benchmark, spec.method, spec.d, spec.variant)).to_dict()
    return {
        key: {"run": value, "paper": paper[key]}
        for key, value in spec.to_dict().items()
        if key not in IDENTITY and FIELDS[key].metadata["recipe"] and value != paper[key]
    }


# --- the project's configuration --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """A resolved configuration: what to run and how.

    Attributes:
        settings: every top-level key with its value (preset and config.yaml merged).
        runs: the specifications, in the order of the experiments.
        folders: what the data sets of one's own hold, by name.
    """

    settings: dict[str, Any]
    runs: tuple[RunSpec, ...]
    folders: Mapping[str, Survey]

    @property
    def benchmarks(self) -> list[str]:
        """Every data set that a run needs, sorted."""
        return sorted({name for spec in self.runs for name in (spec.benchmark, spec.probed)})

    def describe_folders(self) -> list[str]:
        """What was found in the data sets of one's own and derived from that, in lines for people."""
        return [line for found in self.folders.values() for line in describe_recipe(found)]

    def processes(self, spec: RunSpec) -> int:
        """How many processes share the training of a run."""
        return self._number("processes", spec)

    def nodes(self, spec: RunSpec) -> int:
        """How many hosts these processes are on."""
        return self._number("nodes", spec)

    def _number(self, key: str, spec: RunSpec) -> int:
        """The last matching pattern decides, and without one it is 1."""
        given = self.settings[key]
        patterns = given if isinstance(given, dict) else {"*": given}
        return next((n for pattern, n in reversed(patterns.items()) if fnmatch.fnmatchcase(spec.cell, pattern)), 1)

    def find(self, run: str) -> RunSpec:
        """The run with this name (``cell/seedN-hash`` or ``cell/seedN``)."""
        for spec in self.runs:
            if run in (spec.run, spec.name):
                return spec
        preset = self.settings["preset"]
        raise ConfigError(
            f"{unknown('run', run, (spec.name for spec in self.runs))}. These are of the preset {preset}; "
            "`wmse runs --preset NAME` lists those of another"
        )


def load_project(config: Mapping[str, Any], root: Path = Path()) -> Project:
    """Resolve a configuration: the content of config.yaml in `root`, or that merged with what Snakemake was given.

    Raises ConfigError: one message that names the key and what is allowed.
    """
    try:
        count_values(dict(config), {})
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"configuration: {error}") from None
    config = plain_values(config)
    presets = {path.stem: path for path in sorted((FOLDER / "presets").glob("*.yaml"))}
    name = config.get("preset", "quick")
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(f"key 'preset': {unknown('preset', str(name), presets)}")
    preset = plain_values(read_yaml(presets[name]))
    settings = {**preset, **config, "preset": name}
    settings["variants"] = {**_mapping(preset, "variants"), **_mapping(config, "variants")}
    schema = read_yaml(FOLDER / "config.schema.yaml")
    validate(settings, schema)
    plugins()  # those of installed packages
    for path in settings.get("plugins") or ():
        add_plugin(root / path)
    for key, value in schema["properties"].items():
        settings.setdefault(key, value.get("default"))
    for key in ("data_root", "results"):
        _check_path(key, settings[key])
    folders = survey_folders(settings, root)
    # The preset's patterns come first, so that the user's have the last word.
    patterns = [*_mapping(preset, "parameters").items(), *_mapping(config, "parameters").items()]
    for key in ("processes", "nodes"):
        for pattern in settings[key] if isinstance(settings[key], dict) else ():
            _check_pattern(key, pattern)
    digests = {name: found.digest for name, found in folders.items()}
    runs = _runs(settings, patterns, len(_mapping(preset, "parameters")), digests)
    project = Project(settings, tuple(runs), folders)
    for spec in project.runs:
        if spec.trained:
            spec.check_processes(project.processes(spec), project.nodes(spec))
    return project


def survey_folders(settings: Mapping[str, Any], root: Path) -> dict[str, Survey]:
    """What the data sets of one's own hold, whose recipes are known from then on. Raises ConfigError."""
    try:
        blocks = _mapping(settings, "datasets")
        folders = {name: survey(name, folder_set(name, block, root)) for name, block in blocks.items()}
    except DataError as error:
        raise ConfigError(f"key 'datasets': {error}") from None
    for name, found in folders.items():
        add_benchmark(name, own_benchmark(found, settings["preset"]))
    return folders


def _check_path(key: str, path: str) -> None:
    try:
        name = os.fsencode(path)
        usable = b"\0" not in name and len(name) <= 2000 and all(len(part) <= 255 for part in name.split(b"/"))
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ConfigError(f"key '{key}': {show(path)} cannot be the name of a folder: choose another")


def _mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | types.NoneType):
        raise ConfigError(f"key '{key}' must be a mapping, got {show(value)}")
    return value or {}


def _runs(
    settings: Mapping[str, Any],
    patterns: Sequence[tuple[str, Mapping[str, Any]]],
    presets: int,
    digests: Mapping[str, str],
) -> list[RunSpec]:
    """The runs; the first `presets` patterns are the preset's, which folders' recipes have taken into account."""
    cells = _selected_cells(settings)
    for pattern, _ in patterns:
        _check_pattern("parameters", pattern)
    variants = settings["variants"]
    known = {**variants, **paper_variants()}
    runs = []
    for cell, seeds in cells.items():
        variant = parse_label(cell.partition("/")[2])[2]
        if variant and variant not in known:
            raise ConfigError(f"{cell}: {unknown('variant', variant, known)}")
        budgeted = "preset" in recipes()["benchmarks"][cell.partition("/")[0]]
        mine = patterns[presets:] if budgeted else patterns
        matching = [(pattern, block) for pattern, block in mine if fnmatch.fnmatchcase(cell, pattern)]
        # What makes a variant stays, whatever is set for all methods, unless a pattern names variants.
        named = {key for pattern, block in matching if "@" in pattern for key in block}
        own = {key: value for key, value in paper_variants().get(variant, {}).items() if key not in named}
        overrides = [*(block for _, block in matching), own, variants.get(variant, {})]
        runs += [make_spec(cell, seed, overrides, digests) for seed in seeds]
    return runs


def _check_pattern(key: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise ConfigError(f"key '{key}': pattern {show(pattern)} must be text, e.g. '*/wmse-4'")
    if "/" not in pattern and pattern != "*":
        raise ConfigError(f"key '{key}': pattern '{pattern}' must be '*' or 'BENCHMARK/METHOD', e.g. '*/wmse-4'")
    benchmark = pattern.partition("/")[0]
    if not fnmatch.filter(benchmarks(), benchmark):
        raise ConfigError(f"key '{key}': pattern '{pattern}': {unknown('benchmark', benchmark, benchmarks())}")


def _selected_cells(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """The seeds of every cell of the experiments, restricted to `benchmarks` and `methods` where these are given."""
    blocks = [_experiment(block) for block in settings["experiments"]]
    for key in ("benchmarks", "methods"):
        offered = {name for block in blocks for name in block[key]}
        for name in settings[key] or ():
            if name not in offered:
                raise ConfigError(f"key '{key}': {unknown(key[:-1], name, offered)} (or add it under 'experiments')")
    cells: dict[str, list[int]] = {}
    for block in blocks:
        for benchmark, method in itertools.product(block["benchmarks"], block["methods"]):
            if benchmark not in benchmarks():
                raise ConfigError(f"key 'experiments': {unknown('benchmark', benchmark, benchmarks())}")
            if benchmark in (settings["benchmarks"] or [benchmark]) and method in (settings["methods"] or [method]):
                seeds = cells.setdefault(f"{benchmark}/{make_label(method)}", [])
                seeds += [seed for seed in block.get("seeds", settings["seeds"]) if seed not in seeds]
    if not cells:
        raise ConfigError("keys 'benchmarks' and 'methods' together select no experiment: leave one of them out")
    return cells


def _experiment(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block of the key `experiments` with its methods, which a named experiment brings along."""
    name = block.get("experiment")
    if name is not None and name not in experiments():
        raise ConfigError(f"key 'experiments': {unknown('experiment', name, experiments())}")
    if name is None and "methods" not in block:
        raise ConfigError("key 'experiments': a block needs 'methods', or the name of an 'experiment' that has them")
    return {"methods": experiments()[name]["methods"] if name else [], **block}
