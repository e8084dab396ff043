"""The training step: what it takes beside the encoder, and against a step of lightly with a DataLoader."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from synthetic import arrays
from timing import Table, alternate, milliseconds, ratio, synchronize
from torch import nn
from torch.utils.data import DataLoader, Dataset

from wmse.config import RunSpec, make_spec
from wmse.encoder import Encoder
from wmse.runs.folder import RunFolder
from wmse.runtime import Runtime, resolve
from wmse.training import Job, Trainer


def measure(device: torch.device) -> list[Table]:
    table = Table(
        "Training step",
        ["d x N", "precision", "step, ms", "encoder / step", "lightly / step", "lightly in our precision / step"],
        "ResNet-18 of full width at 32 pixels. Encoder: forward and backward alone on resident random tensors of"
        " the same"
        " shape, precision and memory format; step: fetch, augment, encode, loss, backward, optimiser, logging."
        " lightly:"
        " its transform with our parameters, DataLoader, the same encoder, its head and loss, Adam; once as it comes"
        " (fp32), once with our precision and memory format. The paper's N on a GPU; on a CPU, where a step is in"
        " proportion to it, 128.",
    )
    on_gpu = device.type == "cuda"
    runtime = resolve(str(device))
    for d in (2, 4):
        n = (512 if d == 2 else 256) if on_gpu else 128
        table.rows.append(
            _row(make_spec(f"cifar10/wmse-{d}", 0, [{"batch_size": n}]), runtime, rounds=25 if on_gpu else 5)
        )
    return [table, _compiled(device), *([] if on_gpu else [_narrow(device)])]


def _compiled(device: torch.device) -> Table:
    """Steps with and without `compile`."""
    on_gpu = device.type == "cuda"
    table = Table(
        "Compiled training step",
        ["d x N, width", "precision", "step, ms", "compiled / step", "compiling, s"],
        "`compile: true` against the step as it is. Compiling: what the first two compiled steps, which also record"
        " the CUDA graphs of a GPU, take longer than the others; little where a cache of torch's holds the code."
        " On a CPU the narrow encoder of the preset `quick`, as the full one takes a minute to compile.",
    )
    for d in (2, 4) if on_gpu else (2,):
        settings = {"batch_size": 512 if d == 2 else 256} if on_gpu else {"batch_size": 128, "width": 16}
        spec = make_spec(f"cifar10/wmse-{d}", 0, [settings])
        runtime = resolve(str(device))
        with tempfile.TemporaryDirectory() as folder:
            data = arrays(2048)
            jobs = [Job(spec, data, RunFolder(Path(folder)), replace(runtime, compile=on)) for on in (False, True)]
            plain, compiled = (_ours(Trainer(job)) for job in jobs)
            began = time.perf_counter()
            for _ in range(2):
                compiled()
            synchronize(device)
            first = time.perf_counter() - began
            step, other = alternate({"step": plain, "compiled": compiled}, 25, device).values()
        table.rows.append(
            [
                f"{d} x {spec.batch_size}, {spec.width}",
                runtime.precision,
                milliseconds(step),
                ratio(other, step),
                f"{first - 2 * statistics.median(other):.0f}",
            ]
        )
    return table


def _narrow(device: torch.device) -> Table:
    """What bounds the narrow encoders of the presets for CPUs: the parts of a step, one view's share on one core."""
    table = Table(
        "Narrow encoders on one core",
        [
            "width, pixels",
            "d x N",
            "step, us/view",
            "convolutions / step",
            "norms, ReLUs / step",
            "step in auto / step",
        ],
        "One thread, fp32. Convolutions, and batch norms with ReLUs: those of the encoder alone, forward and backward"
        f" on resident random tensors. auto: the precision that is chosen here ({resolve(str(device)).precision}).",
    )
    for width, pixels, d in ((8, 16, 2), (8, 32, 4), (16, 16, 4), (16, 32, 2)):
        shape = {"batch_size": 128 // d, "width": width, "view_size": pixels}
        head = {"head_hidden": 256, "embedding": 16, "w_size": 32}
        spec = make_spec(f"cifar10/wmse-{d}", 0, [{**shape, **head}])
        with tempfile.TemporaryDirectory() as folder, one_thread():
            runtimes = [resolve(str(device), precision=precision) for precision in ("fp32", "auto")]
            data = arrays(2048)
            plain, auto = (_ours(Trainer(Job(spec, data, RunFolder(Path(folder)), each))) for each in runtimes)
            contestants = {
                "step": plain,
                "convolutions": _layers(spec, runtimes[0], nn.Conv2d),
                "norms": _layers(spec, runtimes[0], nn.BatchNorm2d, nn.ReLU),
                "auto": auto,
            }
            step, convolutions, norms, in_auto = alternate(contestants, 9, device).values()
        views = d * spec.batch_size
        table.rows.append(
            [
                f"{width}, {pixels}",
                f"{d} x {spec.batch_size}",
                f"{1e6 * statistics.median(step) / views:.0f}",
                ratio(convolutions, step),
                ratio(norms, step),
                ratio(in_auto, step),
            ]
        )
    return table


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _layers(spec: RunSpec, runtime: Runtime, *kinds: type[nn.Module]) -> Callable[[], None]:
    """The encoder's calls of modules of some `kinds`, each on its own, forward and backward, on all views."""
    encoder = runtime.place(Encoder(spec.arch, spec.stem, spec.width)).train()
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        x = torch.randn_like(inputs[0]).requires_grad_(inputs[0].requires_grad)
        calls.append((module, x, torch.randn_like(output)))

    hooks = [module.register_forward_hook(remember) for module in encoder.modules() if isinstance(module, kinds)]
    encoder(runtime.batch(torch.randn(spec.batch_size, 3, spec.view_size, spec.view_size)))
    for hook in hooks:
        hook.remove()
    for module, _, _ in calls:
        module.inplace = False  # of a ReLU: a leaf of a graph cannot be overwritten

    def run() -> None:
        for module, x, gradient in calls * spec.d:
            module(x).backward(gradient)

    return run


def _row(spec: RunSpec, runtime: Runtime, rounds: int) -> list[str]:
    data = arrays(2048)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Job(spec, data, RunFolder(Path(folder)), runtime))
        contestants = {
            "step": _ours(trainer),
            "encoder": _bare_encoder(spec, runtime),
            "lightly": _lightly(spec, data["pretrain"].images, runtime, plain=True),
            "same": _lightly(spec, data["pretrain"].images, runtime, plain=False),
        }
        step, encoder, lightly, same = alternate(contestants, rounds, runtime.device).values()
    return [
        f"{spec.d} x {spec.batch_size}",
        runtime.precision,
        milliseconds(step),
        ratio(encoder, step),
        ratio(lightly, step),
        ratio(same, step),
    ]


def _ours(trainer: Trainer) -> Callable[[], object]:
    index = torch.randperm(len(trainer.images))[: trainer.job.spec.batch_size]
    losses = torch.zeros((), dtype=torch.float64, device=trainer.job.runtime.device)
    return lambda: losses.add_(trainer.step(index).loss.detach())


def _bare_encoder(spec: RunSpec, runtime: Runtime) -> Callable[[], object]:
    encoder = runtime.place(Encoder(spec.arch, spec.stem, spec.width)).train()
    shape = (spec.batch_size, 3, spec.view_size, spec.view_size)
    views = [runtime.batch(torch.randn(shape, device=runtime.device)) for _ in range(spec.d)]

    def run() -> None:
        encoder.zero_grad(set_to_none=True)
        with runtime.autocast():
            features = torch.cat([encoder(view) for view in views])
        features.float().square().mean().backward()

    return run


class Pictures(Dataset):
    """PIL images in memory through lightly's transform."""

    def __init__(self, images: np.ndarray, spec: RunSpec) -> None:
        from lightly.transforms.wmse_transform import WMSETransform
        from PIL import Image

        self.pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
        self.transform = WMSETransform(num_samples=spec.d, input_size=spec.view_size, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(self.pictures[index])


def _lightly(spec: RunSpec, images: np.ndarray, runtime: Runtime, plain: bool) -> Callable[[], object]:
    """A step as lightly's examples write it; `plain` leaves precision and memory format as they come."""
    from lightly.loss import WMSELoss
    from lightly.models.modules.heads import ProjectionHead

    device = runtime.device
    hidden = (512, spec.head_hidden, nn.BatchNorm1d(spec.head_hidden), nn.ReLU())
    head = ProjectionHead([hidden, (spec.head_hidden, spec.embedding, None, None)])
    model = nn.Sequential(Encoder(spec.arch, spec.stem, spec.width), head).to(device)
    if not plain:
        model = runtime.place(model)
    criterion = WMSELoss(spec.embedding, w_size=spec.w_size, w_iter=spec.w_iter, num_samples=spec.d).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    # On a CPU workers would prepare batches while the other contestants run; in this process the work is the same.
    workers = os.cpu_count() if device.type == "cuda" else 0
    loader = DataLoader(Pictures(images, spec), spec.batch_size, shuffle=True, drop_last=True, num_workers=workers)

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    stream = batches()
    steps = 1 if device.type == "cpu" else 8  # on a GPU more than the workers have ready, so that they are measured too

    def run() -> None:
        for _ in range(steps):
            views = [view.to(device) for view in next(stream)]
            optimizer.zero_grad()
            if plain:
                loss = criterion(torch.cat([model(view) for view in views]))
            else:
                with runtime.autocast():
                    embeddings = torch.cat([model(runtime.batch(view)) for view in views])
                loss = criterion(embeddings.float())
            loss.backward()
            optimizer.step()

    return run
