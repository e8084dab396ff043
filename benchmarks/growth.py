"""Growth: time and memory of a step against the number of views, of images a step, and of images in the data set."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from synthetic import dataset
from timing import Table, resident, synchronize

from wmse.config import make_spec
from wmse.losses import wmse_loss_unchecked
from wmse.runs.folder import RunFolder
from wmse.runtime import resolve
from wmse.training import Job, Trainer
from wmse.whitening import draw_slices

# d, N, images in the data set: one grows, the others stay.
CASES = [(d, 128, 10_000) for d in (2, 4, 8, 16)] + [(2, n, 10_000) for n in (256, 512, 1024)]
CASES += [(2, 128, images) for images in (20_000, 50_000, 100_000)]


def measure(device: torch.device) -> list[Table]:
    steps = Table(
        "Growth of a step",
        ["d", "N", "images", "step, ms", "per view, us", "loss, ms", "per view, us", "memory, MB"],
        "Every row in a process of its own, with an encoder of an eighth of the width (full width on a GPU), so"
        " that what"
        " is not the encoder shows. Memory: the largest of the process without files that are mapped (on a GPU: of"
        " tensors).",
    )
    for d, n, images in CASES:
        command = [sys.executable, __file__, str(device), str(d), str(n), str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        step, loss, memory = json.loads(done.stdout)
        views = d * n
        steps.rows.append(
            [
                str(d),
                str(n),
                f"{images:,}",
                f"{1e3 * step:.0f}",
                f"{1e6 * step / views:.0f}",
                f"{1e3 * loss:.2f}",
                f"{1e6 * loss / views:.2f}",
                f"{memory / 2**20:,.0f}",
            ]
        )
    return [steps]


def _case(device: torch.device, d: int, n: int, images: int) -> tuple[float, float, float]:
    """Seconds of a step and of the loss, and bytes."""
    spec = make_spec(f"cifar10/wmse-{d}", 0, [{"batch_size": n, "width": 64 if device.type == "cuda" else 8}])
    with tempfile.TemporaryDirectory() as folder:
        stored = np.lib.format.open_memmap(f"{folder}/images.npy", "w+", np.uint8, (images, 3, 32, 32))
        stored[:] = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
        stored.flush()
        mapped = np.load(f"{folder}/images.npy", mmap_mode="r")
        trainer = Trainer(Job(spec, dataset(mapped), RunFolder(Path(folder)), resolve(str(device)), progress_bar=False))
        if device.type == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # what came before, imports and noise, does not count
        step = _median(lambda: trainer.step(torch.randperm(images)[:n]), device, 7)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - resident("RssFile")
    v = torch.randn(d, n, spec.embedding, device=device, requires_grad=True)
    slices = draw_slices(n, spec.w_size).to(device)
    loss = _median(lambda: wmse_loss_unchecked(v, slices)[0].backward(), device, 31)
    return step, loss, memory


def _median(run: object, device: torch.device, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    print(json.dumps(_case(torch.device(sys.argv[1]), *map(int, sys.argv[2:]))))
