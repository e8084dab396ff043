"""Whether the bf16 encoder (whitening and losses in fp32) is within noise of fp32 throughout, on the quick benchmark.

python benchmarks/precision.py [--seeds 5] [--methods wmse-2 wmse-4] [--results FOLDER]

Trains and evaluates every method, seed and precision through the DAG (what FOLDER already holds is not repeated), then
compares the accuracies: the difference of the means, and its standard error over the seeds. Two precisions whose means
differ by less than two standard errors are within noise of each other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16")
FIGURES = {"linear_top1": "linear", "knn5_top1": "5-nn"}
ROOT = Path(__file__).resolve().parent.parent


def run_all(precision: str, seeds: int, methods: list[str], results: Path) -> None:
    config: dict[str, Any] = {
        "preset": "quick",
        "results": str(results),
        "seeds": list(range(seeds)),
        "experiments": [{"benchmarks": ["fashion_mnist"], "methods": methods}],
        "parameters": {"*": {"precision": precision}},
    }
    arguments = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    command = ["snakemake", "--cores", "all", "--config", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def accuracies(precision: str, seeds: int, methods: list[str], results: Path) -> dict[tuple[str, str], list[float]]:
    """By method and figure, one accuracy a seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for path in sorted(results.glob("runs/fashion_mnist/*/*/result.json")):
        result = json.loads(path.read_text())
        method, seed = path.parts[-3], result["spec"]["seed"]
        if result["spec"]["precision"] == precision and method in methods and seed < seeds:
            for figure in FIGURES:
                found.setdefault((method, figure), {})[seed] = result["metrics"][figure]
    return {key: [by_seed[seed] for seed in range(seeds)] for key, by_seed in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["wmse-2", "wmse-4"])
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "precision")
    args = parser.parse_args()
    values = {}
    for precision in PRECISIONS:
        run_all(precision, args.seeds, args.methods, args.results)
        values[precision] = accuracies(precision, args.seeds, args.methods, args.results)
    print(f"{args.seeds} seeds; mean ± standard deviation; difference of the means ± its standard error")
    for key in values["fp32"]:
        fp32, bf16 = values["fp32"][key], values["bf16"][key]
        difference = statistics.mean(bf16) - statistics.mean(fp32)
        error = math.sqrt((statistics.variance(fp32) + statistics.variance(bf16)) / args.seeds)
        cells = [f"{statistics.mean(v):6.2f} ± {statistics.stdev(v):4.2f}" for v in (fp32, bf16)]
        verdict = "within noise" if abs(difference) <= 2 * error else "NOT within noise"
        print(
            f"{key[0]:<8} {FIGURES[key[1]]:<7} fp32 {cells[0]}   bf16 {cells[1]}   "
            f"bf16 - fp32 {difference:+5.2f} ± {error:4.2f}  {verdict}"
        )


if __name__ == "__main__":
    main()
