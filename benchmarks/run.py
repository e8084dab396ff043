"""All benchmarks on the device at hand, into one report.

python benchmarks/run.py [--device cuda] [--only loss views]
"""

from __future__ import annotations

import argparse
import importlib
import time
from importlib import metadata
from pathlib import Path

from timing import Table

from wmse.files import write_text
from wmse.provenance import provenance
from wmse.runtime import resolve

SUITES = ("loss", "views", "step", "evaluation", "data", "decode", "overheads", "growth")
COMPARED = ("lightly", "kornia", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.md"))
    options = parser.parse_args()
    runtime = resolve(options.device)
    parts = [_head(runtime.describe())]
    for suite in options.only:
        started = time.perf_counter()
        tables: list[Table] = importlib.import_module(suite).measure(runtime.device)
        for table in tables:
            parts.append(table.markdown())
            print(table.markdown(), flush=True)
        print(f"({suite}: {time.perf_counter() - started:.0f} s)\n", flush=True)
        write_text(options.out, "\n".join(parts))  # after every suite: nothing measured is lost


def _head(runtime: dict[str, object]) -> str:
    source = provenance(runtime)  # before the suites: of the code that they run, and of the time when they begin
    compared = ", ".join(f"{name} {metadata.version(name)}" for name in COMPARED)
    versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
    hardware = source["hardware"]
    device = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['cpu']}"
    return (
        f"# Benchmarks\n\nOn {device}; {versions}; compared with {compared}. Runtime: {runtime}. Commit"
        f" {source['commit']}{' with changes' if source['dirty'] else ''}, begun {source['finished']}.\n\n"
        "Contestants take turns in one process. A ratio above 1 of another to ours means that ours is faster;"
        " ratios are"
        " of medians, with the quartiles of the rounds' own ratios in brackets.\n"
    )


if __name__ == "__main__":
    main()
