"""What a configuration costs on this machine, before anyone starts it: views, hours and energy of every run.

Counts are exact: they follow from the specification. Times come from a short warm-up of the project's own functions on
synthetic images: one per distinct cost, as runs that differ in seed, epochs or learning rate take the same time a step.
What takes too long whole is measured in part and scaled linearly.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmse.config import RunSpec
from wmse.datasets import SOURCES, load
from wmse.encoder import BLOCKS
from wmse.errors import ConfigError, DataError, WmseError
from wmse.evaluate import RESULT
from wmse.features import extract, raw_pixels
from wmse.images import FileImages, open_images
from wmse.methods import build_encoder
from wmse.power import PowerMeter
from wmse.pretrain import Trainer, evaluation_due
from wmse.probes import knn_predict, linear_accuracy
from wmse.runtime import Runtime

SMALLEST = 8  # images (or samples) that a warm-up starts with, to see how many it can afford
TIMED_SECONDS = 1.5  # of the final measurement, if the budget allows it
PROBE_VALUES = 2**26  # of synthetic features: a quarter of a GB
ROUNDS = 3  # that it is made in; the median counts, so that another program's moment does not
RETRIES = 2  # of the quick look at a size
KNN_TEST = 512  # test samples of the timed k-NN: two chunks of the real one
FILES = 32  # different synthetic JPEG files
PHOTO, MINIATURE = (375, 500), (50, 50)  # height and width of a typical ImageNet photograph, and of the embedded files


@dataclass(frozen=True)
class Workload:
    """What a run has to do: optimiser steps, views in all of them, and 5-nn evaluations between them."""

    steps: int
    views: int
    evaluations: int


def workload(spec: RunSpec, images: int) -> Workload:
    """Count the work of a run on `images` images, as the trainer does it: the last partial batch is dropped.

    Raises:
        ConfigError: the batch is larger than the data set.
    """
    if not spec.trained:
        return Workload(0, 0, 0)
    if images < spec.batch_size:
        raise ConfigError(f"{spec.cell}: batch_size ({spec.batch_size}) exceeds the {images} images")
    steps = spec.epochs * (images // spec.batch_size)
    evaluations = sum(evaluation_due(spec, epoch) for epoch in range(1, spec.epochs + 1))
    return Workload(steps, steps * spec.batch_size * spec.d, evaluations)


def image_counts(benchmark: str, data_root: Path) -> dict[str, int]:
    """Images of every split: of the prepared data if they are there, else the published numbers."""
    try:
        data = load(benchmark, data_root)
        return {name: len(data[name]) for name in data}
    except DataError:
        return {name: rows.stop - rows.start for name, rows in SOURCES[benchmark].splits.items()}


# --- which runs cost the same -----------------------------------------------------------------------------------------


def image_shape(benchmark: str) -> tuple[int, int]:
    """Height and width of the benchmark's images; where they vary, those of a typical one."""
    side = SOURCES[benchmark].image_size
    if side is not None:
        return side, side
    return MINIATURE if benchmark.endswith("_mini") else PHOTO


def step_key(spec: RunSpec) -> Hashable:
    """Equal for runs whose training steps cost the same."""
    return spec.same_step(), image_shape(spec.benchmark), SOURCES[spec.benchmark].streamed


def extraction_key(spec: RunSpec) -> Hashable:
    """Equal for runs whose evaluation costs the same per image, up to the probes."""
    network = None if spec.method == "pixels" else (spec.arch, spec.stem, spec.width, spec.precision)
    return network, spec.view_size, spec.eval_resize, image_shape(spec.benchmark), SOURCES[spec.benchmark].streamed


def feature_count(spec: RunSpec) -> int:
    """Length of a feature vector."""
    if spec.method == "pixels":
        return 3 * spec.view_size**2
    return 8 * spec.width * BLOCKS[spec.arch][0].expansion


# --- warm-up ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """A measured cost: seconds per image (or sample), on `size` of the `full` ones; watts None if unknown."""

    seconds: float
    size: int
    full: int
    watts: float | None
    out_of_memory: bool = False


def measure(
    build: Callable[[int], Callable[[], object]],
    full: int,
    budget: float,
    meter: PowerMeter,
    synchronize: Callable[[], None] = lambda: None,
    fit: Callable[[int], int] = lambda size: size,
    smallest: int = SMALLEST,
) -> Cost:
    """The cost per image of something done to `full` images at once, or to as many as fit into `budget` seconds.

    Sizes grow from `smallest` while the next one still leaves time for its untimed call, which pays for allocations,
    autotuning and compilation, and for a timed one.

    Args:
        build: gives for a size the function that does it once.
        synchronize: waits for the device.
        fit: rounds a size down to one that is possible.
    """
    began, size, out_of_memory = time.perf_counter(), min(smallest, full), False

    def clock(call: Callable[[], object], times: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize()
        return time.perf_counter() - start

    limit, call = full, None
    while True:
        try:
            call = None  # frees the memory of the smaller one
            call = build(size)
            clock(call, 1)
            once = clock(call, 1)
            for _ in range(RETRIES if once < budget / 20 else 0):  # a hiccup here would end the growth too early
                once = min(once, clock(call, 1))
        except torch.OutOfMemoryError:
            if size <= smallest:
                raise WmseError(f"not even {size} images at a time fit into the memory of the GPU") from None
            call, out_of_memory = None, True
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
        rounds = [clock(call, times) for _ in range(ROUNDS if left > ROUNDS * once else 1)]
    return Cost(statistics.median(rounds) / times / size, size, full, meter.watts, out_of_memory)


@dataclass
class SyntheticSplit:
    """The interface of `wmse.datasets.Split`: uint8 images (n, 3, h, w), or JPEG files."""

    images: np.ndarray
    paths: list[Path]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class WarmUp:
    """Measures on this machine, each distinct cost once.

    Args:
        runtime: gives the runtime of a specification.
        folder: for synthetic JPEG files.
    """

    def __init__(
        self,
        runtime: Callable[[RunSpec], Runtime],
        seconds: float,
        meter: PowerMeter,
        folder: Path,
        log: Callable[[str], None],
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
        build: Callable[[int], Callable[[], object]],
        full: int,
        fit: Callable[[int], int] = lambda size: size,
        smallest: int = SMALLEST,
    ) -> Cost:
        if key not in self.costs:
            place = self.runtime(spec).device
            wait = (lambda: torch.cuda.synchronize(place)) if place.type == "cuda" else lambda: None
            try:
                cost = self.costs[key] = measure(build, full, budget, self.meter, wait, fit, smallest)
            except WmseError as error:
                raise type(error)(f"warm-up of {spec.cell}, {what}: {error}") from None
            self.log(
                f"{spec.cell}: {what}, {1e3 * cost.seconds:.3g} ms an image ({cost.size} of {cost.full} at a time)"
            )
        return self.costs[key]

    def images(self, benchmark: str, n: int) -> SyntheticSplit:
        """n images with the smooth shapes and the noise of photographs: uniform noise would be slower to decode."""
        h, w = image_shape(benchmark)
        rng = np.random.default_rng(0)
        distinct = min(n, FILES) if SOURCES[benchmark].streamed else n
        coarse = torch.from_numpy(rng.integers(0, 256, (distinct, 3, 8, 8)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")
        images = (smooth.numpy() + rng.normal(0, 8, (distinct, 1, h, w))).clip(0, 255).astype(np.uint8)
        labels = np.arange(n) % SOURCES[benchmark].num_classes
        if not SOURCES[benchmark].streamed:
            return SyntheticSplit(images, [], labels)
        from PIL import Image

        paths = [self.folder / f"{h}x{w}-{i}.jpg" for i in range(distinct)]
        for path, pixels in zip(paths, images, strict=True):
            if not path.exists():
                Image.fromarray(pixels.transpose(1, 2, 0)).save(path, quality=90)
        return SyntheticSplit(images[:0], [paths[i % distinct] for i in range(n)], labels)

    def step(self, spec: RunSpec) -> Cost:
        """A training step, per image."""
        whitens = spec.resolved_whitening != "identity"
        decoders: list[ThreadPoolExecutor] = []

        def stop_decoding() -> None:  # of the batch that nobody will ask for: it would slow what is measured next
            while decoders:
                decoders.pop().shutdown(cancel_futures=True)

        def build(size: int) -> Callable[[], object]:
            stop_decoding()
            # The rate is 0: random images teach nothing, and must not make a warm-up diverge.
            part = replace(spec, batch_size=size, lr=0.0)
            if whitens and size < spec.w_size:  # not even one sub-batch is affordable: a smaller one, of fewer numbers
                part = replace(part, w_size=size, embedding=min(spec.embedding, size // 2))
            split = self.images(spec.benchmark, size)
            data: Any = {"pretrain": split, "train": split, "test": split}
            trainer = Trainer(part, data, self.folder, self.runtime(spec), progress_bar=False)
            if isinstance(trainer.images, FileImages):
                decoders.append(trainer.images.pool)
            index = torch.arange(size)
            return lambda: trainer.step(index, index)  # the next batch is decoded meanwhile, as in training

        def fit(size: int) -> int:
            return size - size % spec.w_size if whitens and size >= spec.w_size else size

        try:
            return self._once("training step", step_key(spec), spec, self.seconds, build, spec.batch_size, fit=fit)
        finally:
            stop_decoding()

    def extraction(self, spec: RunSpec) -> Cost:
        """Features of an image."""
        runtime = self.runtime(spec)

        def build(size: int) -> Callable[[], object]:
            images = open_images(
                self.images(spec.benchmark, size),
                SOURCES[spec.benchmark],
                spec,
                runtime.device,  # type: ignore[arg-type]
            )
            if spec.method == "pixels":
                return lambda: raw_pixels(images)
            encoder = runtime.place(build_encoder(spec, 0))
            return lambda: extract(encoder, images, runtime)

        return self._once("features", extraction_key(spec), spec, self.seconds / 2, build, 500)

    def knn(self, spec: RunSpec, train: int) -> Cost:
        """k-NN of KNN_TEST test samples, per training sample."""
        f, device = feature_count(spec), self.runtime(spec).device

        def build(size: int) -> Callable[[], object]:
            # Of few dimensions inside, as real features: the distances of white noise are hard to tell apart.
            x = torch.randn(size + KNN_TEST, 16, device=device) @ torch.randn(16, f, device=device)
            labels = torch.zeros(size, dtype=torch.int64, device=device)
            return lambda: knn_predict(x[KNN_TEST:], labels, x[:KNN_TEST], min(spec.knn_k, size))

        full = min(train, PROBE_VALUES // f)
        # Of few samples many are within rounding's reach of the k-th, which costs more than the rest.
        return self._once("k-NN", ("knn", f, full, spec.knn_k), spec, self.seconds / 4, build, full, smallest=1000)

    def linear(self, spec: RunSpec, train: int) -> Cost:
        """An epoch of the linear probe, per training sample."""
        f, device, classes = feature_count(spec), self.runtime(spec).device, SOURCES[spec.benchmark].num_classes
        generator, batch = torch.Generator().manual_seed(0), spec.probe_batch_size

        def build(size: int) -> Callable[[], object]:
            x, labels = torch.randn(size, f, device=device), torch.arange(size, device=device) % classes
            return lambda: linear_accuracy(
                *(x, labels, x[:1], labels[:1]),
                **{"num_classes": classes, "generator": generator, "epochs": 1, "batch_size": batch},
            )

        full = min(train, 20 * batch, PROBE_VALUES // f)
        return self._once("linear probe", ("linear", f, full, batch, classes), spec, self.seconds / 4, build, full)


# --- estimate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The estimate of one run; what does not apply or is not known is None.

    `hours` is training and evaluation together, `measured_images` the part of the batch that the step was timed with.
    """

    run: str
    done: bool
    views: int
    steps: int
    evaluations: int
    batch_size: int
    measured_images: int | None = None
    out_of_memory: bool = False
    ms_per_step: float | None = None
    views_per_second: float | None = None
    hours: float | None = None
    evaluation_hours: float | None = None
    kwh: float | None = None


def estimate(runs: Sequence[RunSpec], runs_folder: Path, data_root: Path, warm_up: WarmUp) -> list[Row]:
    """The cost of every run; those with a result in `runs_folder` are done and cost nothing more."""
    rows = []
    for spec in runs:
        counts = image_counts(spec.benchmark, data_root)
        work = workload(spec, counts["pretrain"])
        name = spec.run.rsplit("-", 1)[0]
        row = Row(name, (runs_folder / spec.run / RESULT).exists(), **asdict(work), batch_size=spec.batch_size)
        rows.append(row if row.done else price(row, spec, counts, warm_up))
    return rows


def price(row: Row, spec: RunSpec, counts: Mapping[str, int], warm_up: WarmUp) -> Row:
    """The row with its times and energy, from measured costs."""
    train, test, passes = counts["train"], counts["test"], row.evaluations + 1  # one more for the final probes
    step = warm_up.step(spec) if spec.trained else None
    parts = [
        (passes * (train + test), warm_up.extraction(spec)),
        (passes * train * test / KNN_TEST, warm_up.knn(spec, train)),
        (spec.probe_epochs * train, warm_up.linear(spec, train)),
    ]
    evaluation = sum(count * cost.seconds for count, cost in parts)
    if step:
        parts.append((row.steps * spec.batch_size, step))
        per_step = spec.batch_size * step.seconds
        row = replace(
            row,
            measured_images=step.size,
            out_of_memory=step.out_of_memory,
            ms_per_step=1e3 * per_step,
            views_per_second=spec.d / step.seconds,
        )
    hours = sum(count * cost.seconds for count, cost in parts) / 3600
    known = all(cost.watts is not None for _, cost in parts)
    kwh = sum(count * cost.seconds * (cost.watts or 0) for count, cost in parts) / 3.6e6 if known else None
    return replace(row, hours=hours, evaluation_hours=evaluation / 3600, kwh=kwh)


def total(rows: Sequence[Row]) -> dict[str, Any]:
    """The sum of what is left to do; the energy is None if that of any run is."""
    left = [row for row in rows if not row.done]
    energy = [row.kwh for row in left]
    return {
        "runs": len(left),
        "done": len(rows) - len(left),
        "views": sum(row.views for row in left),
        "steps": sum(row.steps for row in left),
        "hours": sum(row.hours or 0 for row in left),
        "evaluation_hours": sum(row.evaluation_hours or 0 for row in left),
        "kwh": None if None in energy else sum(value or 0 for value in energy),
    }


# --- output -----------------------------------------------------------------------------------------------------------


def count(value: float) -> str:
    """A count in three or four digits: 999, 102.4 k, 3.07 G."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.0f}"


def number(value: float | None) -> str:
    """Three significant digits and no exponent; an em dash for None."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 else f"{value:.1g}" if value else "0"


def duration(hours: float) -> str:
    """Hours in a unit to plan with: 40 s, 12 min, 3.4 h, 5.2 days."""
    for unit, name in ((24.0, "days"), (1.0, "h"), (1 / 60, "min")):
        if hours >= 2 * unit:
            return f"{hours / unit:.1f} {name}"
    return f"{3600 * hours:.0f} s"


HEADER = ("run", "views", "steps", "ms/step", "views/s", "hours", "of it eval.", "kWh")


def table(rows: Sequence[Row]) -> str:
    """The rows and their sum as an aligned table."""
    cells = [HEADER, *map(_cells, rows)]
    whole = total(rows)
    name = f"sum of {whole['runs']}" + (f" ({whole['done']} done)" if whole["done"] else "")
    sums = (number(whole["hours"]), number(whole["evaluation_hours"]), number(whole["kwh"]))
    cells.append((name, count(whole["views"]), count(whole["steps"]), "", "", *sums))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])  # names left, numbers right
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    work = (count(row.views), count(row.steps)) if row.steps else ("—", "—")
    if row.done:
        return (row.run, *work, "—", "—", "done", "—", "—")
    scaled = row.measured_images is not None and row.measured_images < row.batch_size
    mark = ("!" if row.out_of_memory else "*") if scaled else ""
    speed = "—" if row.views_per_second is None else count(row.views_per_second)
    return (
        *(row.run, *work, number(row.ms_per_step) + mark, speed),
        *(number(row.hours), number(row.evaluation_hours), number(row.kwh)),
    )


def notes(rows: Sequence[Row], meter: PowerMeter) -> Iterator[str]:
    """What the numbers mean, and what they leave out."""
    whole = total(rows)
    yield f"left to do: {duration(whole['hours'])}, the jobs one after another, each with all of the above."
    yield (
        "counted: training steps, 5-nn evaluations during the training, final features, 5-nn and linear probe; not "
        "counted: preparing data, reading images from a slow disk, checkpoints, starting processes; a run that was "
        "interrupted counts whole."
    )
    marks = {_cells(row)[3][-1:] for row in rows}
    if "*" in marks:
        yield "*: timed on a part of the batch (on less than a sub-batch if need be), scaled linearly in the images."
    if "!" in marks:
        yield "!: the whole batch does not fit into this GPU's memory: the run needs a larger one or a smaller batch."
    yield meter.describe()
