"""The commands that pass on finished runs: bundle, import."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from wmse.cli_config import add_config, find_run


def add_bundle_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them by `add(name, function, help)`."""
    command = add("bundle", run_bundle, "a finished run as one archive or folder, for others to check or continue")
    command.add_argument("run", help="a run's folder, or the name of a run of the configuration")
    add_config(command)
    command.add_argument("--out", type=Path, help="a .tar.gz or .tar, or a new folder (default: RUN-HASH.tar.gz here)")
    command.add_argument(
        "--without-checkpoint", action="store_true", help="leave out the head and the optimiser's state"
    )

    command = add("import", run_import, "put the runs of bundles into the folder of the results")
    command.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="what `wmse bundle` wrote")
    command.add_argument("--results", type=Path, default=Path("results"), help="default: results")


def run_bundle(options: argparse.Namespace, output: Callable[[str], None]) -> None:
    """`wmse bundle`."""
    from wmse.runs.bundle import write_bundle
    from wmse.runs.folder import RunFolder

    folder = RunFolder(find_run(options, options.run)[0])
    out, digest = write_bundle(folder, options.out, not options.without_checkpoint)
    output(f"wrote {out}: bundle {digest}")


def run_import(options: argparse.Namespace, output: Callable[[str], None]) -> None:
    """`wmse import`."""
    from wmse.runs.bundle import import_bundle

    for bundle in options.bundles:
        folder, digest, new = import_bundle(bundle, options.results)
        output(f"{folder.path}: {'imported from' if new else 'is there already, as in'} {bundle}: bundle {digest}")
