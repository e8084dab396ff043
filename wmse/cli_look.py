"""The commands that look and compute nothing new: runs, watch, compare, doctor, selfcheck, verify, completion."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from wmse.cli_config import add_config, add_data_root, find_run, read_project
from wmse.cli_encoder import positive
from wmse.errors import WmseError

Add = Callable[..., argparse.ArgumentParser]
Say = Callable[..., None]
SHELLS = ("bash", "zsh", "fish")


def add_look_commands(add: Add) -> None:
    """Add them by `add(name, function, help)`."""

    def as_json(command: argparse.ArgumentParser, what: str = "one JSON object instead of text") -> None:
        command.add_argument("--json", action="store_true", help=what)

    command = add("runs", run_list, "the runs of the configuration in the current folder, and how far they are")
    add_config(command)
    as_json(command, "one JSON object a run: its full specification and its state")

    command = add("watch", run_watch, "all runs of the configuration with their progress, while they are computed")
    add_config(command)
    command.add_argument("--seconds", type=positive(float), default=2.0, help="between two looks (default: 2)")
    command.add_argument("--once", action="store_true", help="print the table and exit")
    as_json(command, "one JSON object a look instead of the table")

    command = add("compare", run_compare, "what differs between two runs: configuration, circumstances, results")
    for name in ("first", "second"):
        command.add_argument(name, metavar="RUN", help="a run's folder, or the name of a run of the configuration")
    add_config(command)
    as_json(command)

    command = add("doctor", run_doctor, "what is slow or wrong with this machine for the runs of the configuration")
    add_config(command)
    add_data_root(command, None)
    command.add_argument("--results", type=Path, help="folder of the results (default: that of config.yaml)")
    as_json(command)

    command = add("selfcheck", run_selfcheck, "whether this installation works: arithmetic, data, folders")
    command.add_argument("--results", type=Path, default=Path("results"), help="a folder that must be writable")
    add_data_root(command)
    command.add_argument("--quiet", action="store_true", help="print only what failed")
    as_json(command)

    command = add("verify", run_verify, "hash data, checkpoints, encoders and results again: what is damaged?")
    command.add_argument("runs", nargs="*", type=Path, metavar="DIRECTORY", help="runs (default: all in --results)")
    command.add_argument("--results", type=Path, default=Path("results"))
    add_data_root(command)
    as_json(command)

    command = add("completion", run_completion, "a script that lets a shell complete commands, options and runs")
    command.add_argument("shell", choices=SHELLS)
    command.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # the script's own question


def run_list(options: argparse.Namespace, output: Say) -> None:
    """`wmse runs`."""
    from wmse.runs.state import look_at_runs

    project = read_project(options)
    for line in project.describe_folders():
        output(line, file=sys.stderr)
    width = max(len(spec.run) for spec in project.runs)
    states = look_at_runs(project.runs, options.root / project.settings["results"])
    for spec, state in zip(project.runs, states, strict=True):
        content = {**spec.to_dict(), **asdict(state)}
        output(json.dumps(content) if options.json else f"{spec.run.ljust(width)}  {state.describe()}")


def run_watch(options: argparse.Namespace, output: Say) -> None:
    """`wmse watch`."""
    from wmse.watch import watch

    project = read_project(options)
    with contextlib.suppress(KeyboardInterrupt):  # the way to leave
        results = options.root / project.settings["results"]
        watch(project, results, output, options.seconds, once=options.once, as_json=options.json)


def run_compare(options: argparse.Namespace, output: Say) -> None:
    """`wmse compare`."""
    from wmse.report.two_runs import as_json, as_text, compare_runs, read_side

    found = compare_runs(*(read_side(*find_run(options, name)) for name in (options.first, options.second)))
    for line in [json.dumps(as_json(found))] if options.json else as_text(found):
        output(line)


def run_doctor(options: argparse.Namespace, output: Say) -> None:
    """`wmse doctor`."""
    project = read_project(options)  # before what takes seconds to import
    from wmse.doctor import examine, summarize

    results = options.results or options.root / project.settings["results"]
    data_root = options.data_root or options.root / project.settings["data_root"]
    findings = examine(project, results, data_root)
    summary, wrong = summarize(findings), any(finding.level == "wrong" for finding in findings)
    if options.json:
        output(json.dumps({"preset": project.settings["preset"], "findings": list(map(asdict, findings))}))
    else:
        for finding in findings:
            output(str(finding))
    if wrong:
        raise WmseError(f"doctor: {summary}: follow the advice above, then run `wmse doctor` again")
    if not options.json:
        output(summary)


def run_selfcheck(options: argparse.Namespace, output: Say) -> None:
    """`wmse selfcheck`."""
    from wmse.selfcheck import selfcheck

    failed = selfcheck(options.results, options.data_root, output, options.quiet, options.json)
    if failed:
        raise WmseError(f"selfcheck: {failed} of the checks failed: `wmse doctor` says more about the machine")


def run_verify(options: argparse.Namespace, output: Say) -> None:
    """`wmse verify`."""
    from wmse.runs.verify import verify

    findings = verify(options.runs, options.data_root, options.results)
    if options.json:
        output(json.dumps({"checked": findings.checked, "problems": findings.problems}))
    else:
        for line in findings.problems:
            output(line)
    if findings.problems:
        raise WmseError(f"{findings.summary()}: do what the lines above say, then run `wmse verify` again")
    if not options.json:
        output(findings.summary())


def run_completion(options: argparse.Namespace, output: Say) -> None:
    """`wmse completion`."""
    from wmse.completion import complete, script

    if options.words is None:
        output(script(options.shell))
        return
    for word in complete(options.parser, options.words):
        output(word)
