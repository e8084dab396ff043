"""Trustworthy comparisons: contestants alternate in one process, and their medians are compared."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Table:
    """One table of results/benchmarks.md."""

    title: str
    columns: Sequence[str]
    note: str = ""
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        body = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        return f"## {self.title}\n\n{self.note.strip()}\n\n{body}\n"


def alternate(
    contestants: dict[str, Callable[[], object]], rounds: int = 15, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of each contestant in each of `rounds`, taken in turns after one round of warm-up.

    On a GPU a contestant's time ends when the device has finished its work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` takes at most above what was there before: of the process, or on the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed and kept would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's record of the largest size starts again
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A size in bytes from the kernel's account of this process, by its name there."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def milliseconds(seconds: Sequence[float]) -> str:
    """The median in milliseconds."""
    value = 1e3 * statistics.median(seconds)
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """The ratio of the medians, and the quartiles of the rounds' own ratios."""
    value = statistics.median(slow) / statistics.median(fast)
    by_round = sorted(a / b for a, b in zip(slow, fast, strict=True))
    if len(by_round) < 3:
        return f"{value:.2f}"
    low, _, high = statistics.quantiles(by_round, n=4)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
