"""Short measurements of the project's own functions on synthetic images."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wmse.config import RunSpec
from wmse.datasets import SOURCES, ArrayDataset, ArraySplit
from wmse.datasets.source import Log
from wmse.errors import ConfigError, WmseError
from wmse.estimate.plan import extraction_key, feature_count, image_shape, step_key
from wmse.features import extract, raw_pixels
from wmse.images import open_images
from wmse.methods import build_encoder
from wmse.power import PowerMeter
from wmse.probes import knn_predict, linear_accuracy
from wmse.runs.folder import RunFolder
from wmse.runtime import Runtime
from wmse.training import Job, Trainer

FIRST_SIZE = 8  # A warm-up starts with this many images (or samples), to see how many it can afford.
TIMED_SECONDS = 1.5  # The final measurement takes this long if the budget allows it.
ROUNDS = 3  # The final measurement is made this many times; the median counts, not the moment of another program.
RETRIES = 2  # A quick look is repeated this often: one that another program delays would end the growth too early.
PROBE_VALUES = 2**26  # The most values of a probe's synthetic features: a quarter of a GB.
KNN_TEST = 512  # The test samples of the timed k-NN, two chunks of the real one.
FILES = 32  # The number of different synthetic JPEG files; a longer list repeats them.

Task = Callable[[], object]  # Does once what is measured.


@dataclass(frozen=True)
class Cost:
    """A measured cost: seconds per image (or sample), on `size` of the `full` ones; watts None if unknown."""

    seconds: float
    size: int
    full: int
    watts: float | None
    out_of_memory: bool = False


def measure(
    build: Callable[[int], Task],
    full: int,
    budget: float,
    meter: PowerMeter,
    device: torch.device,
    fit: Callable[[int], int] = lambda size: size,
    smallest: int = FIRST_SIZE,
) -> Cost:
    """The cost per image of something done to `full` images at once, or to as many as fit into `budget` seconds.

    Sizes grow from `smallest` while the next one still leaves time for an untimed and a timed call.

    Args:
        build: gives for a size the function that does it once.
        fit: rounds a size down to one that is possible.
    """
    began = time.perf_counter()
    size = min(smallest, full)
    limit = full
    while True:
        try:
            task = None  # frees the memory of the smaller one
            task = build(size)
            once = _quick_look(task, budget, device)
        except torch.OutOfMemoryError:
            if size <= smallest:
                raise WmseError(
                    f"not even {size} images at a time fit into the memory of the GPU: `wmse doctor` says whether "
                    "others are on it, `wmse estimate --memory` what a step needs"
                ) from None
            task = None
            gc.collect()
            torch.cuda.empty_cache()
            size = limit = max(fit(size // 2), smallest)
            continue
        left = budget - (time.perf_counter() - began)
        larger = fit(min(limit, int(size * left / (4 * once))))
        if size >= limit or larger < min(limit, 2 * size):
            break
        size = larger
    times = max(1, int(min(left, TIMED_SECONDS) / ROUNDS / once))
    with meter:
        rounds = [_clock(task, times, device) for _ in range(ROUNDS if left > ROUNDS * once else 1)]
    return Cost(statistics.median(rounds) / times / size, size, full, meter.watts, out_of_memory=limit < full)


def _clock(task: Task, times: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        task()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quick_look(task: Task, budget: float, device: torch.device) -> float:
    """Seconds of a call, after an untimed one that pays for allocations, autotuning and compilation."""
    _clock(task, 1, device)
    once = _clock(task, 1, device)
    for _ in range(RETRIES if once < budget / 20 else 0):
        once = min(once, _clock(task, 1, device))
    return once


class WarmUp:
    """Measures on this machine, each distinct cost once.

    Args:
        runtime: gives the runtime of a specification.
        seconds: time for a training step; the other costs get a part of it each.
        folder: for synthetic JPEG files.

    Raises:
        ConfigError: `seconds` is not a positive number.
    """

    def __init__(
        self, runtime: Callable[[RunSpec], Runtime], seconds: float, meter: PowerMeter, folder: Path, log: Log
    ) -> None:
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"--seconds: must be a positive number of seconds, got {seconds:g}")
        self.runtime, self.seconds, self.meter, self.folder, self.log = runtime, seconds, meter, folder, log
        self.costs: dict[Hashable, Cost] = {}

    def _once(
        self,
        what: str,
        key: Hashable,
        spec: RunSpec,
        budget: float,
        build: Callable[[int], Task],
        full: int,
        fit: Callable[[int], int] = lambda size: size,
        smallest: int = FIRST_SIZE,
    ) -> Cost:
        if key not in self.costs:
            device = self.runtime(spec).device
            try:
                cost = self.costs[key] = measure(build, full, budget, self.meter, device, fit, smallest)
            except WmseError as error:
                raise type(error)(f"warm-up of {spec.cell}, {what}: {error}") from None
            self.log(
                f"{spec.cell}: {what}, {1e3 * cost.seconds:.3g} ms an image ({cost.size} of {cost.full} at a time)"
            )
        return self.costs[key]

    def images(self, benchmark: str, n: int) -> ArraySplit:
        """n images with the smooth shapes and the noise of photographs: uniform noise would be slower to decode."""
        h, w = image_shape(benchmark)
        rng = np.random.default_rng(0)
        source = SOURCES[benchmark]
        distinct = min(n, FILES) if source.streamed else n
        coarse = torch.from_numpy(rng.integers(0, 256, (distinct, 3, 8, 8)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")
        images = (smooth.numpy() + rng.normal(0, 8, (distinct, 1, h, w))).clip(0, 255).astype(np.uint8)
        labels = np.arange(n) % source.num_classes
        if not source.streamed:
            return ArraySplit(labels, images=images)
        from PIL import Image

        paths = [self.folder / f"{h}x{w}-{i}.jpg" for i in range(distinct)]
        for path, pixels in zip(paths, images, strict=True):
            if not path.exists():
                Image.fromarray(pixels.transpose(1, 2, 0)).save(path, quality=90)
        return ArraySplit(labels, files=[paths[i % distinct] for i in range(n)])

    def step(self, spec: RunSpec) -> Cost:
        """A training step, per image; never compiled."""
        whitens = spec.resolved_whitening != "identity"

        def build(size: int) -> Task:
            opened.close()  # the decoding of a batch that nobody will ask for would slow what is measured next
            # The rate is 0: random images teach nothing, and must not make a warm-up diverge.
            part = replace(spec, batch_size=size, lr=0.0, evaluate_on="")
            if whitens and size < spec.w_size:  # not even one sub-batch is affordable: a smaller one, of fewer numbers
                part = replace(part, w_size=size, embedding=min(spec.embedding, size // 2))
            split = self.images(spec.benchmark, size)
            data = ArrayDataset(pretrain=split, train=split, test=split)
            # A compilation would take longer than the warm-up.
            runtime = replace(self.runtime(spec), compile=False)
            trainer = Trainer(Job(part, data, RunFolder(self.folder), runtime, progress_bar=False))
            opened.callback(trainer.close)
            index = torch.arange(size)
            # Decoded meanwhile as in training, but no more than a batch ahead: filling the memory would hold them up.
            ahead = size * 3 * math.prod(image_shape(spec.benchmark))
            trainer.images.read_ahead(itertools.repeat(index), ahead)
            return lambda: trainer.step(index)

        def fit(size: int) -> int:
            return size - size % spec.w_size if whitens and size >= spec.w_size else size

        with contextlib.ExitStack() as opened:
            return self._once("training step", step_key(spec), spec, self.seconds, build, spec.batch_size, fit=fit)

    def extraction(self, spec: RunSpec) -> Cost:
        """Features of an image."""
        runtime = self.runtime(spec)

        def build(size: int) -> Task:
            split = self.images(spec.probed, size)
            images = open_images(split, SOURCES[spec.probed], spec, runtime.device)
            if spec.method == "pixels":
                return lambda: raw_pixels(images)
            encoder = runtime.place(build_encoder(spec, 0))
            return lambda: extract(encoder, images, runtime)

        return self._once("features", extraction_key(spec), spec, self.seconds / 2, build, 500)

    def knn(self, spec: RunSpec, train: int) -> Cost:
        """k-NN of KNN_TEST test samples, per training sample."""
        f, device = feature_count(spec), self.runtime(spec).device

        def build(size: int) -> Task:
            # Of few dimensions inside, as real features: the distances of white noise are hard to tell apart.
            x = torch.randn(size + KNN_TEST, 16, device=device) @ torch.randn(16, f, device=device)
            labels = torch.zeros(size, dtype=torch.int64, device=device)
            return lambda: knn_predict(x[KNN_TEST:], labels, x[:KNN_TEST], min(spec.knn_k, size))

        full = min(train, PROBE_VALUES // f)
        # Of few samples many are within rounding's reach of the k-th, which costs more than the rest.
        return self._once("k-NN", ("knn", f, full, spec.knn_k), spec, self.seconds / 4, build, full, smallest=1000)

    def linear(self, spec: RunSpec, train: int) -> Cost:
        """An epoch of the linear probe, per training sample."""
        f = feature_count(spec)
        device = self.runtime(spec).device
        classes = SOURCES[spec.probed].num_classes
        generator = torch.Generator().manual_seed(0)
        batch = spec.probe_batch_size

        def build(size: int) -> Task:
            x = torch.randn(size, f, device=device)
            labels = torch.arange(size, device=device) % classes
            return lambda: linear_accuracy(
                x, labels, x[:1], labels[:1], num_classes=classes, generator=generator, epochs=1, batch_size=batch
            )

        full = min(train, 20 * batch, PROBE_VALUES // f)
        return self._once("linear probe", ("linear", f, full, batch, classes), spec, self.seconds / 4, build, full)
