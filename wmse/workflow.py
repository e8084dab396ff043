"""What the rules of workflow/ compute: locks of a folder, folders for a container, shares of the cores, commands.

Plain functions of the settings; what belongs to Snakemake stays in workflow/rules/common.smk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from wmse.config import Project
from wmse.errors import ConfigError, WmseError
from wmse.image_folders import Survey
from wmse.locks import lock_holder, take_lock
from wmse.runs.folder import RESULTS_LOCK

TEMPLATE = Path(__file__).parent / "template"  # Links to config.yaml and workflow/ of the source; copies in a wheel.


# --- a folder to work in ----------------------------------------------------------------------------------------------


def init_folder(folder: Path) -> list[Path]:
    """Put config.yaml and workflow/ into `folder`, and return what was written.

    Raises ConfigError: one of them is there already; then nothing is written.
    """
    config = folder / "config.yaml"
    workflow = folder / "workflow"
    for target in (config, workflow):
        if os.path.lexists(target):
            raise ConfigError(f"{target}: exists already and stays as it is; nothing was written: name another folder")
    shutil.copytree(TEMPLATE / "workflow", workflow, copy_function=shutil.copyfile)
    shutil.copyfile(TEMPLATE / "config.yaml", config)
    return [config, workflow]


# Snakemake's own lock files in .snakemake/locks outlive a killed Snakemake. The kernel releases RESULTS_LOCK and this
# one when the process ends, and so they tell a run that goes on from one that was killed.
WORKING_LOCK = ".snakemake/wmse.lock"  # It lies in the working folder, where several may work on different results.


def hold_folders(results: str, command: Sequence[str], folder: Path = Path()) -> list[IO[str]]:
    """Let nobody else run jobs for the results, from whatever working folder, as long as the files stay open.

    Raises WmseError: somebody is at work on them; the message names who.
    """
    name = shlex.join(command)
    return [take_lock(Path(results) / RESULTS_LOCK, name), take_lock(folder / WORKING_LOCK, name, shared=True)]


def forget_killed_run(results: str, warn: Callable[[str], None], folder: Path = Path()) -> None:
    """Remove the lock files of a killed Snakemake from the working folder, unless anybody is at work in it."""
    locks = folder / ".snakemake/locks"
    if holder := lock_holder(Path(results) / RESULTS_LOCK):
        warn(f"{results}: at work here is {holder}")
    elif any(locks.glob("*")) and lock_holder(folder / WORKING_LOCK) is None:
        warn(f"{results}: the last run here was killed; going on from where it was")
        shutil.rmtree(locks, ignore_errors=True)


# --- containers -------------------------------------------------------------------------------------------------------


def outside_folders(
    project: Path, results: str, data_root: str, benchmarks: Iterable[str], folders: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """What a container must see besides the working folder, as (source, place): where data, results and rules lie.

    `folders` are those of somebody's own images and plugins.

    A symbolic link into another place is visible inside only together with its target.
    """
    data = Path(data_root)
    named = [project, Path(results), data, *map(Path, folders)]
    for benchmark in benchmarks:
        folder = data / benchmark
        named += [folder, folder / "raw", folder / "prepared"]
    seen = [Path.cwd().resolve()]
    pairs = []
    for path in named:
        for place in (Path(os.path.abspath(path)), path.resolve()):  # noqa: PTH100 (a link is a place of its own)
            if not any(place.is_relative_to(folder) for folder in seen):
                seen.append(place)
                pairs.append((str(path.resolve()), str(place)))
    return pairs


def binds(pairs: Iterable[tuple[str, str]], given: str) -> str:
    """APPTAINER_BIND with these folders besides the `given` ones. WmseError for a path that it cannot hold."""
    listed = [bind for bind in given.split(",") if bind]
    for source, place in pairs:
        if set(",:") & set(source + place):
            raise WmseError(f"{place}: a path with ',' or ':' cannot be shown in a container: rename or move it")
        if f"{source}:{place}" not in listed:
            listed.append(f"{source}:{place}")
    return ",".join(listed)


# What a job needs of the environment that `--cleanenv` keeps out of its container: its GPUs, that they are Slurm's
# assignment, and the way to the service that lets processes share a GPU.
SHOWN = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "CUDA_MPS_PIPE_DIRECTORY")


def shown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which Apptainer passes on what a job in a container needs."""
    return {f"APPTAINERENV_{name}": environment[name] for name in SHOWN if name in environment}


# --- the share of the machine that a job gets -------------------------------------------------------------------------


def uses_gpu(device: str) -> bool:
    """Whether jobs of this setting run on a GPU of this host."""
    return device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)


def share_of_cores(jobs: int, cores: int, settings: Mapping[str, Any]) -> int:
    """Threads of one of `jobs` jobs: the configured number, or what feeds a GPU, or an even share of the cores."""
    if settings["threads"] != "auto":
        return settings["threads"]
    if uses_gpu(settings["device"]):
        return min(8, cores)
    return max(1, cores // max(1, jobs))


def pretrain_threads(d: int, jobs: int, cores: int, settings: Mapping[str, Any]) -> int:
    """A share of the cores; when runs are few, twice as much for d = 4 positives as for 2, so that all take as long.

    Many runs even out by themselves, and a core each is what they use best. Snakemake never lets the running jobs'
    threads exceed the cores.
    """
    share = share_of_cores(jobs, cores, settings)
    if jobs > 2 * cores or uses_gpu(settings["device"]) or settings["threads"] != "auto":
        return share
    return share * max(1, d // 2)


def placement(processes: int, nodes: int, gpus: int) -> dict[str, int | str]:
    """The resources of a training's job, beside `nodes`, by which an executor finds room for its processes.

    On several nodes it prepares one task for each, which the job itself starts (`srun`), and gives out GPUs by the
    node, as a number for the whole job may be spread unevenly.

    Args:
        gpus: of one process.
    """
    if nodes == 1:
        return {"gpu": gpus * processes}
    tasks: dict[str, int | str] = {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0}
    return {**tasks, "gres": f"gpu:{gpus * processes // nodes}"} if gpus else tasks


# --- commands ---------------------------------------------------------------------------------------------------------


def stage_command(stage: str, settings: Mapping[str, Any]) -> str:
    """The start of a stage's shell command.

    Settings of the machine stand here and not among a rule's `params`: changing them must not repeat what is finished.
    `exec`, because a batch system signals and awaits its job's children: a shell between would die and orphan the run.
    """
    words = _options(settings, "data_root", "preset", "device", "gpu_slots", "channels_last", "compile")
    words += plugin_options(settings)
    if settings["deterministic"]:
        words.append("--deterministic")
    return shlex.join(["exec", "wmse", stage, *words]) + " "


def prepare_command(project: Project) -> str:
    """The start of the command that prepares a data set, whose braces are escaped as Snakemake wants it."""
    settings = project.settings
    words = ["exec", "wmse", "prepare", *_options(settings, "data_root"), *plugin_options(settings)]
    words += [] if settings["download"] else ["--no-download"]
    if project.folders:
        words += ["--folders", json.dumps({name: asdict(found.wanted) for name, found in project.folders.items()})]
    return shlex.join(words).replace("{", "{{").replace("}", "}}") + " "


def touched_folders(folders: Iterable[Survey], data_root: str) -> Iterator[str]:
    """A line for every folder of images that holds what was prepared, but with other dates."""
    for found in folders:
        with contextlib.suppress(OSError, ValueError, KeyError):
            own = json.loads((Path(data_root) / found.name / "prepared/manifest.json").read_text(encoding="utf-8"))[
                "own"
            ]
            if own["digest"] == found.digest and own["state"] != found.state:
                yield f"{found.name}: dates of files have changed: `wmse prepare {found.name}` reads the images again"


def plugin_options(settings: Mapping[str, Any]) -> list[str]:
    """What a command must be told about plugins."""
    return [word for path in settings["plugins"] or () for word in ("--plugin", path)]


def pretrain_flags(settings: Mapping[str, Any]) -> str:
    """How often checkpoints are written."""
    return shlex.join(_options(settings, "checkpoint_seconds", "checkpoint_epochs", "keep_checkpoints")) + " "


def progress_flag(jobs: int, cores: int, settings: Mapping[str, Any]) -> str:
    """No progress bar where several of the `jobs` would share the terminal."""
    alone = jobs == 1 or uses_gpu(settings["device"]) or share_of_cores(jobs, cores, settings) == cores
    return "" if alone else "--no-progress "


def _options(settings: Mapping[str, Any], *keys: str) -> list[str]:
    """Settings as options of the command line, which writes True as true; without those that are None."""
    words = []
    for key in keys:
        if settings[key] is not None:
            text = str(settings[key])
            words += [f"--{key.replace('_', '-')}", text.lower() if isinstance(settings[key], bool) else text]
    return words


def rule_graph_config(config: Mapping[str, Any], preset: str) -> list[str]:
    """`--config` of a second Snakemake that is to see the same rules: what decides which there are, and their files."""
    keys = ["preset", "results", "data_root", "experiments", "benchmarks", "methods", "seeds", "parameters", "variants"]
    keys += ["datasets", "plugins"]
    given = {**config, "preset": preset}
    return [f"{key}={json.dumps(given[key])}" for key in keys if key in given]
