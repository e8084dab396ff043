"""What is no training: start of the command, imports, planning, and the rest of the quick preset's first table."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import Table

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# What the rules run that need no tensors, with arguments under which it does all its imports and little else.
LIGHT = {
    "wmse --help": ["--help"],
    "wmse runs": ["runs", "--preset", "paper"],
    "wmse prepare": ["prepare", "fashion_mnist", "--data-root", "{folder}"],
    "wmse report": ["report", "--out", "{folder}/report", "{run}"],
}


def measure(device: torch.device) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder:
        table = Table("Start and planning", ["command", "seconds, median of 7", "imports torch"])
        run = next((ROOT / "results" / "reference").glob("*/runs/*/*/*/result.json")).parent
        for name, arguments in LIGHT.items():
            filled = [argument.format(folder=folder, run=run) for argument in arguments]
            table.rows.append([name, f"{_seconds([str(BIN / 'wmse'), *filled]):.2f}", _imports_torch(filled)])
        plan = [str(BIN / "snakemake"), "--dry-run", "--quiet", "all", "--config", "preset=paper"]
        table.rows.append(["snakemake --dry-run, preset paper", f"{_seconds(plan):.2f}", "—"])
        return [table, _quick(Path(folder), device)]


def _seconds(command: list[str]) -> float:
    taken = []
    for _ in range(8):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def _imports_torch(arguments: list[str]) -> str:
    code = (
        "import sys\nfrom wmse.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {"True": "yes", "False": "no"}[done.stderr.strip().splitlines()[-1]]


def _quick(folder: Path, device: torch.device) -> Table:
    """Table 1 of the quick preset from an empty folder, one job at a time, so that seconds add up."""
    experiments = json.dumps([{"experiment": "table1", "benchmarks": ["fashion_mnist"]}])
    settings = {"preset": "quick", "experiments": experiments, "device": device.type}
    config = [f"{key}={value}" for key, value in settings.items()]
    command = [str(BIN / "snakemake"), "--cores", "all", "--jobs", "1"]
    places = [f"results={folder}/results", f"data_root={folder}/data"]
    started = time.perf_counter()
    subprocess.run([*command, "--config", *config, *places], cwd=ROOT, check=True, capture_output=True)
    wall = time.perf_counter() - started
    results = [json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/*/result.json")]
    training = sum(result["pretrain"]["wall_seconds"] for result in results if result["pretrain"])
    evaluation = sum(result["evaluation"]["wall_seconds"] for result in results)
    return Table(
        "Quick preset, its first table",
        ["whole, s", "training, s", "final evaluation, s", "rest, s", "rest per job, s"],
        f"{len(results)} runs one after the other on all cores. The rest: preparing the data, planning, the start"
        " of every"
        " job with its imports, 5-nn after every epoch, checkpoints, tables, verdicts and plots.",
        [
            [
                f"{wall:.0f}",
                f"{training:.0f}",
                f"{evaluation:.0f}",
                f"{wall - training - evaluation:.0f}",
                f"{(wall - training - evaluation) / (len(results) + 9):.1f}",
            ]
        ],
    )
