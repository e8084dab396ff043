"""Trustworthy comparisons: contestants alternate in one process, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(contestants: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each contestant over `rounds`, taken in turns after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, medians: dict[str, float], ours: str) -> None:
    """Print every contestant's median and its ratio to ours."""
    print(title)
    for name, value in medians.items():
        print(f"  {name:<28} {1e3 * value:10.2f} ms  {value / medians[ours]:6.2f} x {ours}")
