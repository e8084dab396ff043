"""The configuration and the names that the rules share; what is computed here is in wmse/workflow.py."""

import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from wmse.config import DIGITS, load_project
from wmse.errors import ConfigError, WmseError
from wmse.runs.folder import RunFolder
from wmse.workflow import (
    binds,
    forget_killed_run,
    hold_folders,
    outside_folders,
    placement,
    plugin_options,
    prepare_command,
    pretrain_flags,
    pretrain_threads,
    progress_flag,
    rule_graph_config,
    share_of_cores,
    shown_variables,
    stage_command,
    touched_folders,
    uses_gpu,
)

try:
    PROJECT = load_project(config)
except ConfigError as error:
    raise WorkflowError(f"configuration: {error}") from None

# The folder with workflow/: a checkout of the source, or one of `wmse init`.
SOURCE = Path(workflow.basedir).parent
SETTINGS = PROJECT.settings
RUNS = {spec.run: spec for spec in PROJECT.runs}
BENCHMARKS = PROJECT.benchmarks
TRAINED = [spec.run for spec in PROJECT.runs if spec.trained]
DATA, RESULTS = SETTINGS["data_root"], SETTINGS["results"]
# None on a cluster, where the threads are the profile's; `workflow.cores` would be an error then.
CORES = workflow.resource_settings.cores or 1
# It installs the package from its source (envs/wmse.post-deploy.sh), so that only a checkout has it.
CONDA = "../../envs/wmse.yaml" if (SOURCE / "envs/wmse.yaml").exists() else None

RUN = RunFolder.of(Path(RESULTS), "{benchmark}/{method}/{seed}")  # of the wildcards
RESULT_FILES = [RunFolder.of(Path(RESULTS), run).result for run in RUNS]
HISTORIES = [RunFolder.of(Path(RESULTS), run).history for run in TRAINED]
FIGURES = ["training", "dynamics", "accuracy", "collapse", "time", "map"]
PLOTS = [f"{RESULTS}/plots/{name}.png" for name in [*FIGURES, "dag"]]


wildcard_constraints:
    benchmark=r"[a-z0-9_]+",
    digest=r"[0-9a-f]+",
    method=r"[a-z0-9_@.-]+",
    seed=r"seed\d+-[0-9a-f]{8}",


HELD = []  # locks that last as long as this process


def hold():
    """From the first job to the end, nobody else works on these results."""
    try:
        HELD.extend(hold_folders(RESULTS, ["snakemake", *sys.argv[1:]]))
    except WmseError as error:
        raise WorkflowError(str(error)) from None


if workflow.is_main_process:
    forget_killed_run(RESULTS, logger.warning)
    for line in PROJECT.describe_folders():
        logger.info(line)
    for line in touched_folders(PROJECT.folders.values(), DATA):
        logger.warning(line)

DEPLOYMENT = workflow.deployment_settings.deployment_method
if DeploymentMethod.APPTAINER in DEPLOYMENT:
    for spec in PROJECT.runs:
        if PROJECT.nodes(spec) > 1:
            raise WorkflowError(
                f"configuration: {spec.cell}: nodes: with --use-singularity it must be 1: a container has no srun"
            )
    # In a variable, because the profile cannot know the paths.
    try:
        own = [found.wanted.folder for found in PROJECT.folders.values()]
        own += [str(Path(path).resolve().parent) for path in SETTINGS["plugins"] or ()]
        outside = outside_folders(SOURCE, RESULTS, DATA, BENCHMARKS, own)
        shown = binds(outside, os.getenv("APPTAINER_BIND", ""))
        os.environ.update(APPTAINER_BIND=shown, **shown_variables(os.environ))
    except WmseError as error:
        raise WorkflowError(str(error)) from None
if DeploymentMethod.CONDA in DEPLOYMENT:
    if CONDA is None:
        raise WorkflowError(
            f"--use-conda needs a checkout of the source, and {SOURCE} is none: run Snakemake without it here"
        )
    os.environ.update(WMSE_PROJECT=str(SOURCE))


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
    return [RUN.encoder, RUN.pretrained] if spec_of(wildcards).trained else []


def threads_of(wildcards):
    """The share of the cores that a training gets."""
    return pretrain_threads(spec_of(wildcards).d, len(TRAINED), CORES, SETTINGS)


def precedence_of(wildcards):
    """Trainings with the most views of each image first, so that at the end no long one is left alone: at most 1."""
    most = max(spec.epochs * spec.d for spec in PROJECT.runs if spec.trained)
    spec = spec_of(wildcards)
    return spec.epochs * spec.d / most


def processes_of(wildcards):
    """How many processes share a training; as a resource, because a machine's setting must not repeat what is done."""
    return PROJECT.processes(spec_of(wildcards))


def nodes_of(wildcards):
    """How many nodes of a cluster these processes are on."""
    return PROJECT.nodes(spec_of(wildcards))


def gpus_of(wildcards):
    """The number of GPUs that a job of one process asks for."""
    return int(uses_gpu(SETTINGS["device"]))


def placed(name):
    """One of the resources that say where the processes of a training are to be."""
    return lambda wildcards: placement(
        processes_of(wildcards), nodes_of(wildcards), gpus_of(wildcards)
    ).get(name)


def figure(name):
    """A figure with its caption, for Snakemake's own report."""
    return report(
        f"{RESULTS}/plots/{name}.png",
        caption=f"../report/{name}.rst",
        category="Plots",
    )


def result_folders(wildcards, input):
    """The folders of the runs whose results a rule reads."""
    return [str(Path(file).parent) for file in input.results]


def report_command(part):
    """The shell command that writes a part of the report."""
    return (
        f"exec wmse report --only {part} --data-root {shlex.quote(DATA)} {shlex.join(plugin_options(SETTINGS))}"
        " --out {params.out:q} --log {log:q} {params.runs:q}"
    )


def manifest(wildcards):
    """The prepared data. `ancient`: preparing it again gives the same bytes, and must not repeat weeks of training."""
    spec = spec_of(wildcards)
    needed = dict.fromkeys((spec.benchmark, spec.probed))
    return [ancient(f"{DATA}/{name}/prepared/{prepared_file(name)}") for name in needed]


def prepared_file(benchmark):
    """What tells that a data set is prepared: of a folder of somebody's own, for what it holds now."""
    found = PROJECT.folders.get(benchmark)
    return f"folder-{found.digest[:DIGITS]}.json" if found else "manifest.json"
