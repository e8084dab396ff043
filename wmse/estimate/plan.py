"""The work of a run, counted, and which runs cost the same."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from wmse.config import RunSpec
from wmse.datasets import SOURCES, load
from wmse.encoder import BLOCKS
from wmse.errors import ConfigError, DataError

PHOTO = (375, 500)  # Height and width in pixels of a typical photograph of ImageNet.
MINIATURE = (50, 50)  # Height and width in pixels of a typical file of ImageNet in miniature.


@dataclass(frozen=True)
class Workload:
    """What a run has to do: optimiser steps, views in all of them, and 5-nn evaluations between them."""

    steps: int
    views: int
    evaluations: int


def workload(spec: RunSpec, images: int) -> Workload:
    """Count the work of a run on `images` images, as the trainer does it: the last partial batch is dropped.

    Raises ConfigError: the batch is larger than the data set.
    """
    if not spec.trained:
        return Workload(0, 0, 0)
    if images < spec.batch_size:
        raise ConfigError(
            f"{spec.cell}: batch_size ({spec.batch_size}) exceeds the {images} images: lower it under `parameters`"
        )
    steps = spec.epochs * (images // spec.batch_size)
    evaluations = sum(spec.evaluation_due(epoch) for epoch in range(1, spec.epochs + 1))
    return Workload(steps, steps * spec.batch_size * spec.d, evaluations)


def image_counts(benchmark: str, data_root: Path) -> dict[str, int]:
    """Images of every split: of the prepared data if they are there, else the published numbers."""
    try:
        data = load(benchmark, data_root)
        return {name: len(data[name]) for name in data}
    except DataError:
        return {name: rows.stop - rows.start for name, rows in SOURCES[benchmark].splits.items()}


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
    sizes = spec.view_size, spec.eval_resize or spec.view_size, image_shape(spec.probed)
    return network, sizes, SOURCES[spec.probed].streamed


def feature_count(spec: RunSpec) -> int:
    """Length of a feature vector."""
    if spec.method == "pixels":
        return 3 * spec.view_size**2
    return 8 * spec.width * BLOCKS[spec.arch][0].expansion
