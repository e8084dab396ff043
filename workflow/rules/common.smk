"""Configuration, paths and the share of the machine that each job gets."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from wmse.config import load_project
from wmse.errors import ConfigError, WmseError
from wmse.files import lock_holder, take_lock

try:
    PROJECT = load_project(Path(workflow.basedir).parent, config)
except ConfigError as error:
    raise WorkflowError(f"configuration: {error}") from None

SETTINGS = PROJECT.settings
RUNS = {spec.run: spec for spec in PROJECT.runs}
BENCHMARKS = sorted({spec.benchmark for spec in PROJECT.runs})
TRAINED = [spec.run for spec in PROJECT.runs if spec.trained]
DATA, RESULTS = SETTINGS["data_root"], SETTINGS["results"]
RESULT_FILES = [f"{RESULTS}/runs/{run}/result.json" for run in RUNS]
HISTORIES = [f"{RESULTS}/runs/{run}/history.csv" for run in TRAINED]
PLOTS = expand(
    "{results}/plots/{name}.png",
    results=RESULTS,
    name=["training", "dynamics", "accuracy", "collapse", "time", "dag"],
)
GPU = SETTINGS["device"] == "cuda" or (
    SETTINGS["device"] == "auto" and shutil.which("nvidia-smi") is not None
)


# Held by the Snakemake that works in the results folder, from its first job to its end. The kernel releases it when the
# process ends, however it ends: unlike Snakemake's own lock files, it tells a run that goes on from one that was killed.
LOCK = Path(RESULTS) / ".snakemake.lock"
HELD = []


def hold_results():
    """Let nobody else run jobs for this results folder, from whatever working folder."""
    name = shlex.join(["snakemake", *sys.argv[1:]])
    try:
        HELD.append(take_lock(LOCK, name))
    except WmseError as error:
        raise WorkflowError(str(error)) from None


def forget_killed_run():
    """Remove the locks that a killed Snakemake left in this working folder; else say who is at work."""
    holder, locks = lock_holder(LOCK), Path(".snakemake/locks")
    if holder:
        logger.warning(f"{RESULTS}: at work here is {holder}")
    elif any(locks.glob("*")):
        logger.warning(
            f"{RESULTS}: the last run here was killed; going on from where it was"
        )
        shutil.rmtree(locks, ignore_errors=True)


if workflow.is_main_process:
    forget_killed_run()


def outside_folders():
    """What a container must see besides the working folder, as (source, place): where data, results and rules lie.

    A symbolic link into another place is visible inside only together with its target.
    """
    data = Path(DATA)
    named = [Path(workflow.basedir).parent, Path(RESULTS), data]
    for benchmark in BENCHMARKS:
        folder = data / benchmark
        named += [folder, folder / "raw", folder / "prepared"]
    seen, pairs = [Path.cwd().resolve()], []
    for path in named:
        for place in (Path(os.path.abspath(path)), path.resolve()):
            if not any(place.is_relative_to(folder) for folder in seen):
                seen.append(place)
                pairs.append((str(path.resolve()), str(place)))
    return pairs


def bind_folders():
    """Tell Apptainer about these folders; in a variable, because the profile cannot know the paths."""
    binds = [bind for bind in os.getenv("APPTAINER_BIND", "").split(",") if bind]
    for source, place in outside_folders():
        if set(",:") & set(source + place):
            raise WorkflowError(
                f"{place}: a path with ',' or ':' cannot be shown in a container"
            )
        if f"{source}:{place}" not in binds:
            binds.append(f"{source}:{place}")
    os.environ.update(APPTAINER_BIND=",".join(binds))


if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    bind_folders()
# For the conda environment, which installs this project's package (envs/wmse.post-deploy.sh).
os.environ.update(WMSE_PROJECT=str(Path(workflow.basedir).parent))


wildcard_constraints:
    benchmark=r"[a-z0-9_]+",
    method=r"[a-z0-9_@.-]+",
    seed=r"seed\d+-[0-9a-f]{8}",


def run_file(name):
    """The pattern of a file in a run's directory."""
    return f"{RESULTS}/runs/{{benchmark}}/{{method}}/{{seed}}/{name}"


def spec_of(wildcards):
    """The specification of the run that the wildcards name."""
    run = f"{wildcards.benchmark}/{wildcards.method}/{wildcards.seed}"
    if run not in RUNS:
        raise WorkflowError(
            f"{run} is not a run of this configuration; `wmse runs` lists them"
        )
    return RUNS[run]


def spec_json(wildcards):
    """The specification as JSON: as a job's parameter, it reruns the job when it changes, and no other."""
    return json.dumps(spec_of(wildcards).compact())


def encoder_of(wildcards):
    """What an evaluation reads besides the data: nothing for the baselines, which have no training."""
    return (
        [run_file("encoder.safetensors"), run_file("pretrain.json")]
        if spec_of(wildcards).trained
        else []
    )


def folders(files):
    """The folders of some files."""
    return [str(Path(file).parent) for file in files]


def manifest(wildcards):
    """The prepared data. `ancient`: preparing it again gives the same bytes, and must not repeat weeks of training."""
    return ancient(f"{DATA}/{wildcards.benchmark}/prepared/manifest.json")


def share_of_cores(jobs):
    """Threads of one of `jobs` jobs: the configured number, or on a GPU what feeds it, or an even share of the cores."""
    cores = workflow.cores or 1
    if SETTINGS["threads"] != "auto":
        return SETTINGS["threads"]
    return min(8, cores) if GPU else max(1, cores // max(1, min(cores, jobs)))


def pretrain_threads(wildcards):
    """A share of the cores; when runs are few, twice as much for four positives as for two, so that all take as long.

    Many runs even out by themselves, and a core each is what they use best. Snakemake never lets the running jobs'
    threads exceed the cores.
    """
    share = share_of_cores(len(TRAINED))
    many = len(TRAINED) > 2 * (workflow.cores or 1)
    if many or GPU or SETTINGS["threads"] != "auto":
        return share
    return share * max(1, spec_of(wildcards).d // 2)


def rule_graph_config():
    """What a second Snakemake needs to see the same rules: every key that decides what is run, and where it lies."""
    keys = "preset results data_root experiments benchmarks methods seeds parameters variants".split()
    given = {**config, "preset": SETTINGS["preset"]}
    return [f"{key}={json.dumps(given[key])}" for key in keys if key in given]


def flag(name):
    """A setting that is true, false or auto, as the command line takes it."""
    return str(SETTINGS[name]).lower()


def command(stage, extra=""):
    """The start of a stage's shell command.

    Settings of the machine stand here and not in `params`: changing them must not repeat what is finished.
    """
    deterministic = "--deterministic" if SETTINGS["deterministic"] else ""
    return (
        f"wmse {stage} --data-root {shlex.quote(DATA)} --preset {SETTINGS['preset']} --device {SETTINGS['device']}"
        f" --channels-last {flag('channels_last')} --compile {flag('compile')} {deterministic} {extra} "
    )


# Bars of several runs on one terminal would overwrite each other; their lines of text do not.
ONE_AT_A_TIME = (
    len(TRAINED) == 1 or GPU or share_of_cores(len(TRAINED)) == workflow.cores
)
CHECKPOINTS = " ".join(
    f"--{key.replace('_', '-')} {SETTINGS[key]}"
    for key in ("checkpoint_seconds", "checkpoint_epochs", "keep_checkpoints")
    if SETTINGS[key] is not None
)
PRETRAIN_FLAGS = f"{CHECKPOINTS} {'' if ONE_AT_A_TIME else '--no-progress'}"
