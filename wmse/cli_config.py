"""From the arguments of a command to what it works on: the configuration, one of its runs, a folder of images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmse.errors import ConfigError

if TYPE_CHECKING:
    from wmse.config import Project, RunSpec
    from wmse.image_folders import Survey
    from wmse.runs.folder import RunFolder


def add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", type=Path, default=Path(), help="the folder with config.yaml")
    command.add_argument("--preset", help="instead of the preset in config.yaml")


def add_plugins(files: Sequence[Path]) -> None:
    """Know the plugins in these files."""
    if files:
        from wmse.config import add_plugin

        for file in files:
            add_plugin(file)


def read_project(options: argparse.Namespace) -> Project:
    from wmse.config import load_project, read_yaml

    config = read_yaml(options.root / "config.yaml")
    return load_project({**config, "preset": options.preset} if options.preset else config, options.root)


def selected_run(options: argparse.Namespace) -> tuple[RunSpec, RunFolder, str]:
    """The specification, the folder and the preset that the arguments name."""
    from wmse.config import RunSpec
    from wmse.runs.folder import RunFolder

    if bool(options.run) == bool(options.spec):
        raise ConfigError("name a run of the configuration (`wmse runs` lists them), or give --spec, but not both")
    if options.run:
        project = read_project(options)
        spec = project.find(options.run)
        preset = project.settings["preset"]
        results = options.root / project.settings["results"]
    else:
        spec = RunSpec.from_dict(json_object("--spec", options.spec))
        preset = options.preset or ""
        results = Path("results")
    return spec, RunFolder(options.out) if options.out else RunFolder.of(results, spec.run), preset


def find_run(options: argparse.Namespace, name: str) -> tuple[Path, RunSpec | None]:
    """The place that an argument names, or else the folder of the run of this name, and that run's specification."""
    path = Path(name)
    if path.exists() or not (options.root / "config.yaml").exists():
        return path, None
    from wmse.runs.folder import RunFolder

    project = read_project(options)
    spec = project.find(name)
    return RunFolder.of(options.root / project.settings["results"], spec.run).path, spec


def json_object(option: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{option}: must be a JSON object")
    return content


def read_folder(options: argparse.Namespace, say: Callable[[str], None]) -> Survey | None:
    """The folder of one's own images that the arguments or config.yaml describe, if they do."""
    from wmse.config import describe_recipe
    from wmse.image_folders import folder_set, survey

    if options.folders:
        block = json_object("--folders", options.folders).get(options.benchmark)
        return survey(options.benchmark, folder_set(options.benchmark, block)) if block else None
    if not (options.root / "config.yaml").exists():
        return None
    found = read_project(options).folders.get(options.benchmark)
    for line in describe_recipe(found) if found else ():
        say(line)
    return found
