"""How much memory a training step needs on a GPU, which need not be there."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmse.config import Project, RunSpec
from wmse.datasets import SOURCES, ArrayDataset, ArraySplit
from wmse.estimate.plan import image_counts, image_shape, step_key
from wmse.estimate.pretend import PretendGpu, pretend_gpu
from wmse.progress import tracked
from wmse.runs.folder import RunFolder
from wmse.runtime import Runtime
from wmse.training import Job, Trainer

MEMORY_NOTE = (
    "GB: 10^9 bytes of all tensors at the peak of a training step: parameters, optimiser, activations, gradients, "
    "views, and the images, which stay on the GPU if half of its free memory holds them. From shapes and types, "
    "in bf16 unless the run has another precision. Not counted: the CUDA context and the libraries (about 0.5 GB), "
    "workspaces of single operations, fragmentation, the evaluation, what `compile` changes."
)


@dataclass(frozen=True)
class MemoryEstimate:
    """The peak of a run's training step in bytes; None for a baseline, which has none."""

    run: str
    batch_size: int
    d: int
    step_bytes: int | None


def estimate_memory(runs: Sequence[RunSpec], data_root: Path) -> list[MemoryEstimate]:
    """The memory of every run's step; runs with equal steps on equally many images are counted once."""
    peaks: dict[Hashable, int] = {}
    estimates = []
    for spec in tracked(runs, "run", "counting"):
        counts = image_counts(spec.benchmark, data_root)
        key = step_key(spec), tuple(counts.items())
        if spec.trained and key not in peaks:
            peaks[key] = two_steps(spec, counts).memory.peak
        estimates.append(MemoryEstimate(spec.run.rsplit("-", 1)[0], spec.batch_size, spec.d, peaks.get(key)))
    return estimates


def two_steps(spec: RunSpec, counts: Mapping[str, int]) -> PretendGpu:
    """What two steps of the run's own training do on a pretended GPU; `counts` are the images of every split.

    The first step creates what later ones find. So `waits` are those of the second one, and the peak is, too.
    """
    with pretended_training(spec, counts) as (gpu, trainer):
        index = torch.arange(spec.batch_size)
        trainer.step(index)
        gpu.waits.clear()
        trainer.step(index)
    return gpu


@contextmanager
def pretended_training(spec: RunSpec, counts: Mapping[str, int]) -> Iterator[tuple[PretendGpu, Trainer]]:
    """The run's own trainer on a pretended GPU."""
    precision = "bf16" if spec.precision == "auto" else spec.precision
    runtime = Runtime(torch.device("cuda"), precision)
    data = ArrayDataset(**{name: _images(spec, n) for name, n in counts.items()})
    spec = replace(spec, evaluate_on="")
    job = Job(spec, data, RunFolder(Path()), runtime, progress_bar=False)
    with pretend_gpu() as gpu, closing(Trainer(job)) as trainer:
        if SOURCES[spec.benchmark].streamed:
            trainer.images.close()
            trainer.images = _Views(spec.view_size)
        yield gpu, trainer


def _images(spec: RunSpec, n: int) -> ArraySplit:
    """n images that take no memory of the host."""
    labels = np.broadcast_to(np.zeros((), np.int64), n)
    if SOURCES[spec.benchmark].streamed:
        return ArraySplit(labels, files=[Path()] * n)
    return ArraySplit(labels, images=np.broadcast_to(np.zeros((), np.uint8), (n, 3, *image_shape(spec.benchmark))))


class _Views:
    """Instead of files: views as they are when all are made, without the chunks that they are made from."""

    def __init__(self, size: int) -> None:
        self.size = size

    def views(self, index: Tensor, d: int, seed: int, step: int, rows: slice | Tensor) -> list[Tensor]:
        return [torch.empty(len(index), 3, self.size, self.size, device="cuda") for _ in range(d)]

    def close(self) -> None:
        """There is nothing to end."""


def memory_report(project: Project, data_root: Path, as_json: bool) -> Iterator[str]:
    """What the command prints."""
    rows = estimate_memory(project.runs, data_root)
    if as_json:
        yield json.dumps({"preset": project.settings["preset"], "runs": [vars(row) for row in rows]})
    else:
        yield from (memory_table(rows), "", MEMORY_NOTE)


def memory_table(runs: Sequence[MemoryEstimate]) -> str:
    """The runs as an aligned table."""
    width = max(len(run.run) for run in runs)
    lines = [f"{'run'.ljust(width)}  {'images x views':>14}  {'GPU memory':>10}"]
    for run in runs:
        size = "—" if run.step_bytes is None else f"{run.step_bytes / 1e9:,.1f} GB"
        batch = "—" if run.step_bytes is None else f"{run.batch_size} x {run.d}"
        lines.append(f"{run.run.ljust(width)}  {batch:>14}  {size:>10}")
    return "\n".join(lines)
