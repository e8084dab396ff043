"""What a training takes on several GPUs: a model of a step, whose terms are counted and whose speeds are given.

    step = max(arithmetic / P + bytes / bandwidth + collectives * latency, images / (decoding * P))

Arithmetic, bytes and collectives are those of the run's own training step on a pretended GPU. Nothing overlaps but the
decoding of files, though torch's DistributedDataParallel sends gradients while it computes others: so the network's
part is an upper bound.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from wmse.columns import align
from wmse.config import Project, RunSpec
from wmse.datasets import SOURCES
from wmse.errors import ConfigError
from wmse.estimate.memory import pretended_training
from wmse.estimate.plan import image_counts, workload
from wmse.estimate.table import format_count, format_number
from wmse.estimate.warm_up import WarmUp
from wmse.progress import tracked

FLOAT = 4  # Bytes of a gradient, a statistic, an embedding.
BUCKET = 25 << 20  # Bytes of gradients that DistributedDataParallel sends at once.
AGREEMENTS = 5  # Collectives of a step on flags and numbers: images read, all finite (3), whether to stop.
KINDS = ("arithmetic", "network", "decoding")
UNITS = ("TFLOP/s a GPU", "GB/s a GPU", "us a collective", "images/s a GPU")


class Speeds(NamedTuple):
    """What is assumed of the machines.

    Attributes:
        tflops: 10^12 operations of convolutions and products a second and GPU, sustained; None: as is measured here.
        bandwidth: 10^9 bytes a second that a GPU receives while it sends as many.
        latency: microseconds that a collective takes, however little it carries.
        decoding: images a second that the cores beside each GPU decode; None: as many as are needed.
    """

    tflops: float | None
    bandwidth: float
    latency: float
    decoding: float | None


@dataclass(frozen=True)
class StepCount:
    """A step of one of P processes: operations, bytes that it receives, collectives, bytes of its GPU at the peak."""

    operations: float
    received: float
    collectives: int
    memory: int


@dataclass(frozen=True)
class ScaledRun:
    """A training on `gpus` GPUs; `seconds` of a step by `KINDS`; None throughout if it cannot be divided so."""

    run: str
    gpus: int
    steps: int
    batch_size: int
    count: StepCount | None = None
    seconds: tuple[float, float, float] | None = None

    @property
    def step_seconds(self) -> float:
        arithmetic, network, decoding = self.seconds
        return max(arithmetic + network, decoding)

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / 3600

    @property
    def limit(self) -> str:
        """What takes the most of a step."""
        return KINDS[self.seconds.index(max(self.seconds))]


def count_step(spec: RunSpec, counts: Mapping[str, int], processes: int) -> StepCount:
    """Count what one of `processes` does in a step of the run; `counts` are the images of every split."""
    share = spec.batch_size // processes
    part = replace(spec, batch_size=share)
    if share < spec.w_size:  # the slices of a whole batch, which a process computes of gathered embeddings, cost little
        part = replace(part, w_size=share, embedding=min(spec.embedding, max(1, share // 2)))
    norms: Counter[str] = Counter()

    def seen(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        norms["forward"] += 1
        norms["forward channels"] += module.num_features
        if output.requires_grad:
            norms["backward"] += 1
            norms["backward channels"] += module.num_features

    with pretended_training(part, counts) as (gpu, trainer), ExitStack() as hooks:
        index = torch.arange(share)
        trainer.step(index)  # creates the state of the optimiser
        for module in trainer.method.modules():
            if isinstance(module, _BatchNorm):
                hooks.callback(module.register_forward_hook(seen).remove)
        with FlopCounterMode(display=False) as counter:
            trainer.step(index)
        gradients = FLOAT * sum(p.numel() for p in trainer.method.parameters() if p.requires_grad)
    if processes == 1:
        return StepCount(counter.get_total_flops(), 0, 0, gpu.memory.peak)
    gathered = FLOAT * spec.d * spec.batch_size * spec.embedding if spec.loss_over(processes) == "batch" else 0
    # A sum in a ring: each receives the parts of its share, then the sums of the other shares.
    summed = 2 * (gradients + 2 * FLOAT * norms["backward channels"] + gathered)
    received = (processes - 1) * (2 * FLOAT * norms["forward channels"] + (summed + gathered) / processes)
    collectives = norms["forward"] + norms["backward"] + -(-gradients // BUCKET) + 2 * bool(gathered) + AGREEMENTS
    return StepCount(counter.get_total_flops(), received, collectives, gpu.memory.peak)


def scale_runs(
    runs: Sequence[RunSpec], gpus: Sequence[int], data_root: Path, speeds: Speeds, warm_up: WarmUp
) -> Iterator[ScaledRun]:
    """Every training of `runs` on each number of GPUs; those with equal steps are counted once."""
    found: dict[Any, StepCount] = {}
    pairs = list(itertools.product((run for run in runs if run.trained), gpus))
    for spec, processes in tracked(pairs, "step", "counting"):
        counts = image_counts(spec.benchmark, data_root)
        row = ScaledRun(spec.name, processes, workload(spec, counts["pretrain"]).steps, spec.batch_size)
        try:
            spec.check_processes(processes)
        except ConfigError:
            yield row
            continue
        key = spec.same_step(), spec.benchmark, processes
        if key not in found:
            found[key] = count_step(spec, counts, processes)
        count, share = found[key], spec.batch_size / processes
        streamed = SOURCES[spec.benchmark].streamed
        seconds = (
            count.operations / speeds.tflops / 1e12 if speeds.tflops else share * warm_up.step(spec).seconds,
            count.received / speeds.bandwidth / 1e9 + count.collectives * speeds.latency / 1e6,
            share / speeds.decoding if streamed and speeds.decoding else 0.0,
        )
        yield replace(row, count=count, seconds=seconds)


def scaling_report(
    project: Project, gpus: Sequence[int], data_root: Path, speeds: Speeds, warm_up: WarmUp, as_json: bool
) -> Iterator[str]:
    """What the command prints."""
    rows = list(scale_runs(project.runs, gpus, data_root, speeds, warm_up))
    if as_json:
        content = {"preset": project.settings["preset"], "speeds": speeds._asdict(), "runs": list(map(asdict, rows))}
        yield json.dumps(content)
    else:
        yield from (align([[*HEADER, "limit"], *map(_row, rows)]), "", *scaling_notes(speeds))


HEADER = ["run", "GPUs", "GB each", "steps", "ms/step", "network ms", "MB received", "images/s", "hours", "GPU hours"]


def _row(row: ScaledRun) -> list[str]:
    if row.seconds is None:
        return [row.run, str(row.gpus), *["—"] * (len(HEADER) - 2), "the batch cannot be divided so"]
    return [
        row.run,
        str(row.gpus),
        format_number(row.count.memory / 1e9),
        format_count(row.steps),
        format_number(1e3 * row.step_seconds),
        format_number(1e3 * row.seconds[1]),
        format_number(row.count.received / 1e6),
        format_count(row.batch_size / row.step_seconds),
        format_number(row.hours),
        format_number(row.gpus * row.hours),
        row.limit,
    ]


def scaling_notes(speeds: Speeds) -> Iterator[str]:
    """What is assumed, what is counted, and what is left out."""
    yield "ASSUMED, not measured: " + ", ".join(
        f"{name} {value:g} {unit}"
        for (name, value), unit in zip(speeds._asdict().items(), UNITS, strict=True)
        if value is not None
    )
    if speeds.tflops is None:
        yield "measured on the device at hand, of which every GPU is taken to be one: the step without the network"
    yield (
        "counted: operations of convolutions and products; bytes and collectives of gradients, batch norms and "
        "gathered embeddings; memory as with --memory. Nothing overlaps but decoding, so that the network's time is an "
        "upper bound. images/s: read from memory or decoded."
    )
    yield "not counted: evaluations, checkpoints, starting; with --tflops, what only moves memory, such as the views."
