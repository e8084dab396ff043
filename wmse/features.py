"""Features of the frozen encoder, computed once, and what both probes make of them (Section 5)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmse.datasets import SOURCES
from wmse.encoder import restore_encoder
from wmse.errors import TrainingError
from wmse.images import ArrayImages, FileImages, open_images
from wmse.methods import build_encoder
from wmse.probes import knn_accuracy, linear_accuracy, principal_plane
from wmse.probes.neighbours import CHUNK
from wmse.progress import Lines, progress_bar
from wmse.runs.job import Job
from wmse.runtime import Runtime
from wmse.streams import stream, stream_seed

if TYPE_CHECKING:
    from tqdm import tqdm

MOST_POINTS = 500  # Test images on the map of a run.
BATCH = 500  # Images of one forward pass.
NOT_FINITE = (
    "the encoder gives features that are not finite: its training has diverged: lower `lr` or lengthen the warm-up "
    "under `parameters`, which makes another run, and train that"
)


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: ArrayImages | FileImages,
    runtime: Runtime,
    between: Callable[[], object] = lambda: None,
    part: slice = slice(None),
) -> Tensor:
    """(n, f) float32 features of the un-augmented images, in eval mode, not normalised; on the runtime's device.

    `part` restricts them to some images in order. `between` is called before every batch and may raise. The encoder's
    mode is restored in any case. Raises TrainingError if a feature is not finite.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        parts = []
        for batch in images.plain(BATCH, part):
            between()
            with runtime.autocast():
                parts.append(encoder(runtime.batch(batch)).float())
        features = torch.cat(parts)
        if not features.isfinite().all():
            raise TrainingError(NOT_FINITE)
        return features
    finally:
        encoder.train(was_training)


@torch.no_grad()
def raw_pixels(images: ArrayImages | FileImages, between: Callable[[], object] = lambda: None) -> Tensor:
    """(n, 3 * H * W) float32: the normalised pixels themselves as features; `between` as of `extract`."""
    parts = []
    for batch in images.plain(BATCH):
        between()
        parts.append(batch.flatten(1))
    return torch.cat(parts)


def open_probe(job: Job) -> list[tuple[ArrayImages | FileImages, Tensor]]:
    """The images that the encoder is evaluated on, training and test, with their labels; none if they have no labels.

    Those of another benchmark are normalised as the images of the pretraining, which the encoder knows.
    """
    spec, device = job.spec, job.runtime.device
    known, source = SOURCES[spec.benchmark], SOURCES[spec.probed]
    if not source.labelled:
        return []
    source = replace(source, mean=known.mean, std=known.std)
    splits = [job.probe[name] for name in ("train", "test")]
    return [(open_images(split, source, spec, device), torch.from_numpy(split.labels).to(device)) for split in splits]


def run_features(job: Job) -> tuple[Tensor, Tensor]:
    """Features of the probe's training and test images: (n, f) and (m, f), float32; of trained runs by their encoder.

    Raises CheckpointError if the encoder in the run's folder cannot be used.
    """
    spec, runtime = job.spec, job.runtime
    (train, _), (test, _) = open_probe(job)
    with closing(train), closing(test):
        if spec.method == "pixels":
            compute = raw_pixels
        else:
            encoder = build_encoder(spec, stream_seed(spec.seed, "weights"))
            if spec.trained:
                restore_encoder(job.folder.encoder, encoder, spec)
            compute = partial(extract, runtime.place(encoder), runtime=runtime)
        with _bar(job, "features", ceil(len(train) / BATCH) + ceil(len(test) / BATCH)) as bar:
            return compute(train, between=bar.update), compute(test, between=bar.update)


def _bar(job: Job, what: str, steps: int) -> tqdm | Lines:
    return progress_bar(steps, "step", f"{job.spec.name}: {what}", shown=job.progress_bar)


def map_features(job: Job, test: Tensor) -> dict[str, str] | None:
    """Where some test images lie on the two principal axes of their features (m, f), for the report's figure.

    Returns:
        The axes' shares of the variance, and a line "LABEL X Y" for each of at most MOST_POINTS images, as text, which
        takes less room in a record; None for raw pixels, which are too many dimensions.
    """
    if job.spec.method == "pixels":
        return None
    some = torch.randperm(len(test), generator=stream(job.spec.seed, "map"))[:MOST_POINTS].sort().values
    points, shares = principal_plane(test[some.to(test.device)])
    labels = job.probe["test"].labels[some.numpy()].tolist()
    lines = (f"{label} {x:.4g} {y:.4g}" for label, (x, y) in zip(labels, points.tolist(), strict=True))
    return {"shares": " ".join(f"{share:.3f}" for share in shares.tolist()), "points": "\n".join(lines)}


def probe_features(job: Job, train: Tensor, test: Tensor) -> dict[str, float | None]:
    """Accuracies in percent of features (n, f) and (m, f); `linear_top5` is None for fewer than six classes."""
    spec = job.spec
    train_labels, test_labels = (
        torch.from_numpy(job.probe[name].labels).to(train.device) for name in ("train", "test")
    )
    with _bar(job, f"{spec.knn_k}-nn", ceil(len(test) / CHUNK)) as bar:
        knn = knn_accuracy(train, train_labels, test, test_labels, spec.knn_k, bar.update)
    with _bar(job, "linear probe", spec.probe_epochs * ceil(len(train) / spec.probe_batch_size)) as bar:
        linear = linear_accuracy(
            train,
            train_labels,
            test,
            test_labels,
            num_classes=SOURCES[spec.probed].num_classes,
            generator=stream(spec.seed, "probe"),
            epochs=spec.probe_epochs,
            batch_size=spec.probe_batch_size,
            lr=spec.probe_lr,
            weight_decay=spec.probe_weight_decay,
            between=bar.update,
        )
    return {"linear_top1": linear[1], "linear_top5": linear.get(5), "knn5_top1": knn}
