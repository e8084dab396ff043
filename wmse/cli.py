"""The command line: wiring between arguments and stages. Heavy imports happen only in the commands that need them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import wmse
from wmse.cli_bundle import add_bundle_commands
from wmse.cli_config import (
    add_config,
    add_data_root,
    add_plugins,
    json_object,
    read_folder,
    read_project,
    selected_run,
)
from wmse.cli_encoder import add_encoder_commands, positive
from wmse.cli_look import add_look_commands
from wmse.errors import STOPPED_EXIT, ConfigError, WmseError, explain
from wmse.progress import beside_bars

if TYPE_CHECKING:
    from wmse.config import RunSpec
    from wmse.distributed import World
    from wmse.runtime import Runtime


EXIT_CODES = (
    "Exit status: 0 done; 1 an error to act on; 2 wrong arguments; 75 stopped by SIGTERM, SIGINT or SIGUSR1, with a "
    "checkpoint written: the same command continues; 76 another process of the run has died."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can act on become one message and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if options.log:
            options.log.parent.mkdir(parents=True, exist_ok=True)
        add_plugins(options.plugin)
        return options.command(options, Output(options.log)) or 0
    except BrokenPipeError:  # the reader of our output has gone, e.g. `wmse runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WmseError, OSError) as error:
        message = _message(error)
    except KeyboardInterrupt:
        Output(None)("wmse: interrupted; the same command starts again", file=sys.stderr)
        return 130
    Output(options.log)(message, file=sys.stderr)
    return 1


def _message(error: WmseError | OSError) -> str:
    return f"wmse: error: {error if isinstance(error, WmseError) else explain(error)}"


def build_parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = argparse.ArgumentParser(prog="wmse", description="Reproduction of W-MSE (ICML 2021), stage by stage.")
    parser.add_argument("--version", action="version", version=f"wmse {wmse.__version__}")
    parser.set_defaults(log=None, parser=parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[..., int | None], text: str, **more: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, **more)
        command.add_argument("--log", type=Path, help="a file that gets every line of output as well")
        command.add_argument(
            "--plugin",
            type=Path,
            action="append",
            default=[],
            help="a file of `plugins` that config.yaml does not name",
        )
        command.set_defaults(command=function)
        return command

    _add_stages(add)
    _add_services(add)
    add_look_commands(add)
    add_encoder_commands(add)
    add_bundle_commands(add)
    return parser


def _add_stages(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What the rules of the workflow call."""
    command = add("prepare", run_prepare, "download or find a benchmark, verify it, store its prepared form")
    command.add_argument("benchmark")
    add_data_root(command)
    add_config(command)
    command.add_argument("--folders", help="the folders of images as JSON, instead of `datasets` in config.yaml")
    command.add_argument("--no-download", action="store_true", help="use only what lies in the raw folder")
    command.add_argument(
        "--pack", action="store_true", help="copy the JPEG files of a streamed benchmark into one file"
    )

    command = add("pretrain", run_pretrain, "train one run (continues from its checkpoint)", epilog=EXIT_CODES)
    _add_run(command)
    command.add_argument(
        "--checkpoint-seconds", type=positive(float), default=600, help="between two checkpoints (default: 600)"
    )
    command.add_argument("--checkpoint-epochs", type=positive(int), help="also one after every so many epochs")
    command.add_argument(
        "--keep-checkpoints", type=positive(int), default=2, help="how many of the newest stay (default: 2)"
    )
    command.add_argument(
        "--processes",
        type=positive(int),
        default=1,
        help="share the run among so many processes, each with a GPU or a part of the threads (default: 1)",
    )
    command.add_argument(
        "--nodes",
        type=positive(int),
        default=1,
        help="the processes are on so many hosts, on each of which srun starts this command (default: 1)",
    )

    _add_run(add("evaluate", run_evaluate, "linear probe and 5-nn of one run"))

    command = add("report", run_report, "tables, plots, verdicts on the paper's claims, and a page with all of it")
    command.add_argument("runs", nargs="*", type=Path, metavar="DIRECTORY", help="directories with a result.json")
    command.add_argument("--out", type=Path, default=Path("results"))
    command.add_argument("--only", choices=["tables", "claims", "plots", "page"], help="default: all")
    add_data_root(command)

    command = add("dag", run_dag, "a figure of the workflow, from `snakemake --rulegraph` on the standard input")
    command.add_argument("--jobs", default="{}", help="the number of jobs of each rule as JSON")
    command.add_argument("--out", type=Path, default=Path("results"))


def _add_services(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What a user asks before and after."""
    command = add("init", run_init, "write config.yaml and workflow/ into a folder, for `snakemake --cores all` there")
    command.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: the current folder")

    command = add("estimate", run_estimate, "views, hours and energy of every run, from a short warm-up")
    add_config(command)
    add_data_root(command)
    _add_runtime(command)
    command.add_argument("--watts", type=float, help="the machine's power, instead of measuring it")
    command.add_argument("--seconds", type=float, default=10.0, help="at most, for one warm-up (default: 10)")
    command.add_argument("--memory", action="store_true", help="only the memory that a GPU needs; none has to be there")
    command.add_argument("--gpus", type=positive(int), nargs="+", help="instead: trainings on so many GPUs")
    speed = functools.partial(command.add_argument, type=positive(float))
    speed("--tflops", help="with --gpus: what each computes, in TFLOP/s (default: measured on this machine's device)")
    speed("--bandwidth", default=25.0, help="with --gpus: what each receives, in GB/s (default: 25)")
    speed("--latency", default=50.0, help="with --gpus: of a collective, in microseconds (default: 50)")
    speed("--decoding", help="with --gpus: images a second that the cores beside each decode (default: enough)")
    command.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", nargs="?", help="a run of the configuration, e.g. cifar10/wmse-4/seed0")
    add_config(command)
    command.add_argument("--spec", help="the run's specification as JSON, instead of a name")
    command.add_argument("--out", type=Path, help="the run's directory (default: results/runs/RUN)")
    command.add_argument("--no-progress", action="store_true", help="no progress bar, also on a terminal")
    add_data_root(command)
    _add_runtime(command)


class Output:
    """Prints lines, and appends them to a file if there is one.

    A line that cannot be written, as on a full disk, ends no training: results report their own failures. A warning
    says so once, where it still can.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.warned = False

    def __call__(self, line: str, file: TextIO | None = None) -> None:
        stream = file or sys.stdout
        try:
            with beside_bars():
                print(line, file=stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else it would fail again at the end
            self._warn("the output", error)
        if self.path:
            try:
                with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as log:
                    log.write(line + "\n")
            except OSError as error:
                self._warn(self.path, error)

    def _warn(self, where: Path | str, error: OSError) -> None:
        if not self.warned:
            self.warned = True
            with contextlib.suppress(OSError):
                print(f"wmse: warning: {where}: {error.strerror}; going on without it", file=sys.stderr, flush=True)


def _add_runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    command.add_argument("--channels-last", choices=["auto", "true", "false"], default="auto")
    command.add_argument("--compile", choices=["auto", "true", "false"], default="auto")
    command.add_argument("--deterministic", action="store_true", help="bit-reproducible kernels on a GPU")
    command.add_argument(
        "--gpu-slots", type=positive(int), default=1, help="how many processes may share a GPU (default: 1)"
    )


# --- commands ---------------------------------------------------------------------------------------------------------


def run_prepare(options: argparse.Namespace, output: Output) -> None:
    from wmse.config import of_package
    from wmse.datasets import prepare

    found = None if of_package(options.benchmark) else read_folder(options, output)
    ways = {"download": not options.no_download, "pack": options.pack, "log": output, "folder": found}
    data = prepare(options.benchmark, options.data_root, **ways)
    output(f"{options.benchmark}: ready in {data.folder}, {data.digest}")


def run_init(options: argparse.Namespace, output: Output) -> None:
    from wmse.workflow import init_folder

    written = init_folder(options.folder)
    output(f"wrote {' and '.join(str(path) for path in written)}; now run `snakemake --cores all` in that folder")


def run_estimate(options: argparse.Namespace, output: Output) -> None:
    project = read_project(options)
    if project.folders:
        from wmse.datasets import plan_folders

        plan_folders(project.folders.values(), options.data_root)
    if options.memory:
        from wmse.estimate.memory import memory_report

        for line in memory_report(project, options.data_root, options.json):
            output(line)
        return
    from wmse.estimate import WarmUp, as_table, estimate_runs, notes, total
    from wmse.power import PowerMeter
    from wmse.provenance import hardware

    runtimes: dict[str, Runtime] = {}

    def progress(line: str) -> None:
        output(line, file=sys.stderr)

    def runtime(spec: RunSpec) -> Runtime:
        if spec.precision not in runtimes:
            runtimes[spec.precision] = _runtime(options, spec, progress)
            options.device = str(runtimes[spec.precision].device)  # "cuda" would claim one more GPU each time
        return runtimes[spec.precision]

    meter = PowerMeter(runtime(project.runs[0]).device, options.watts)
    results = options.root / project.settings["results"]
    with tempfile.TemporaryDirectory(prefix="wmse-estimate-") as folder:
        warm_up = WarmUp(runtime, options.seconds, meter, Path(folder), progress)
        if options.gpus:
            from wmse.estimate.scaling import Speeds, scaling_report

            speeds = Speeds(*(getattr(options, field) for field in Speeds._fields))
            for line in scaling_report(project, options.gpus, options.data_root, speeds, warm_up, options.json):
                output(line)
            return
        rows = estimate_runs(project.runs, results, options.data_root, warm_up)
    machines = [value.describe() for value in runtimes.values()]
    content = {"preset": project.settings["preset"], "hardware": hardware(machines[0]), "runtimes": machines}
    if options.json:
        power = meter.describe()
        output(json.dumps({**content, "power": power, "runs": [vars(row) for row in rows], "sum": total(rows)}))
        return
    output(as_table(rows) + "\n")
    for key, value in content.items():
        output(f"{key}: {json.dumps(value)}")
    for line in notes(rows, meter):
        output(line)


def run_pretrain(options: argparse.Namespace, output: Output) -> int:
    spec, folder, preset = selected_run(options)
    if not spec.trained:
        raise ConfigError(
            f"{spec.run}: the baseline '{spec.method}' has nothing to train: run `wmse evaluate {spec.name}`"
        )
    spec.check_processes(options.processes, options.nodes)
    from wmse.distributed import join, started_by_launcher

    if options.processes > 1 and not started_by_launcher():
        from wmse.distributed.launch import launch

        threads = options.threads or len(os.sched_getaffinity(0))
        say = functools.partial(output, file=sys.stderr)
        return launch(options.arguments, options.processes, options.nodes, threads, say)
    from wmse.datasets import load
    from wmse.training import CheckpointPolicy, Job, Stopped, pretrain

    with join(options.device, lambda error: output(_message(error), file=sys.stderr)) as world:
        spec.check_processes(world.size)
        speaks = world.rank == 0
        job = Job(
            spec,
            load(spec.benchmark, options.data_root, digest=spec.digest_of(spec.benchmark)),
            folder,
            _runtime(options, spec, output, world),
            preset,
            CheckpointPolicy(options.checkpoint_seconds, options.checkpoint_epochs, options.keep_checkpoints),
            log=output if speaks else lambda line: None,
            progress_bar=None if speaks and not options.no_progress else False,
            evaluated=load(spec.probed, options.data_root, digest=spec.digest_of(spec.probed)),
        )
        try:
            pretrain(job)
        except Stopped as stopped:
            job.log(str(stopped))
            return STOPPED_EXIT
    return 0


def run_evaluate(options: argparse.Namespace, output: Output) -> None:
    spec, folder, preset = selected_run(options)
    from wmse.datasets import load
    from wmse.runs.evaluate import evaluate
    from wmse.runs.job import Job

    data, evaluated = (
        load(name, options.data_root, digest=spec.digest_of(name)) for name in (spec.benchmark, spec.probed)
    )
    runtime = _runtime(options, spec, output)
    shown = False if options.no_progress else None
    evaluate(Job(spec, data, folder, runtime, preset, log=output, progress_bar=shown, evaluated=evaluated))


def run_report(options: argparse.Namespace, output: Output) -> None:
    from wmse.report import build_report

    for line in build_report(options.runs, options.out, options.data_root, options.only):
        output(f"wmse: left out: {line}", file=sys.stderr)


def run_dag(options: argparse.Namespace, output: Output) -> None:
    from wmse.report import write_dag

    write_dag(sys.stdin.buffer.read().decode("utf-8", "replace"), json_object("--jobs", options.jobs), options.out)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _runtime(options: argparse.Namespace, spec: RunSpec, say: Callable[[str], None], *world: World) -> Runtime:
    from wmse.runtime import resolve

    return resolve(
        options.device,
        spec.precision,
        options.channels_last,
        options.compile,
        options.deterministic,
        options.threads,
        options.gpu_slots,
        say,
        *world,
    )
