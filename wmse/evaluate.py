"""Evaluation of a run: features once, then the linear probe and 5-nn; writes the run's result.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmse.checkpoint import ENCODER, load_encoder
from wmse.config import RunSpec, paper_differences
from wmse.datasets import SOURCES, Prepared
from wmse.errors import CheckpointError
from wmse.features import extract, raw_pixels
from wmse.files import write_json
from wmse.images import open_images
from wmse.methods import build_encoder
from wmse.pretrain import PRETRAINED
from wmse.probes import knn_accuracy, linear_accuracy
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runtime import Runtime
from wmse.streams import stream, stream_seed

RESULT = "result.json"


def evaluate(
    spec: RunSpec,
    data: Prepared,
    out: Path,
    runtime: Runtime,
    *,
    preset: str = "",
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate the run in `out` and write result.json with every number's provenance.

    Raises:
        CheckpointError: the encoder or pretrain.json is missing or of another run.
    """
    started = time.perf_counter()
    pretrained = _read_pretrained(out, spec, data) if spec.trained else {}
    train, test = features(spec, data, out, runtime)
    seconds = time.perf_counter() - started
    log(f"{spec.run}: features {tuple(train.shape)} and {tuple(test.shape)} in {seconds:.1f} s")
    metrics = probe(spec, data, train, test)
    log(", ".join(f"{name} {value:.2f} %" for name, value in metrics.items() if value is not None))
    result = {
        "format": 1,
        "run": spec.run,
        "benchmark": spec.benchmark,
        "method": spec.method,
        "d": spec.d if spec.trained else None,
        "variant": spec.variant,
        "seed": spec.seed,
        "preset": preset,
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "paper_differences": paper_differences(spec),
        "metrics": metrics,
        "pretrain": pretrained.get("pretrain"),
        "evaluation": {
            "wall_seconds": round(time.perf_counter() - started, 1),
            "train_images": len(train),
            "test_images": len(test),
            "features": train.shape[1],
            "peak_memory_bytes": peak_memory_bytes(runtime.device.type),
        },
        "data": {"benchmark": spec.benchmark, "digest": data.digest},
        # A trained run's numbers come from its training; where the probes ran is recorded beside it.
        "provenance": pretrained.get("provenance") or provenance(runtime.describe()),
        "evaluation_provenance": provenance(runtime.describe()),
    }
    write_json(out / RESULT, result)
    return result


def _read_pretrained(out: Path, spec: RunSpec, data: Prepared) -> dict[str, Any]:
    path = out / PRETRAINED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, digest = content["spec_hash"], content["data"]["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error!r:.200}): run the pretraining of {spec.run} first"
        ) from None
    if found != spec.hash:
        raise CheckpointError(f"{path}: belongs to a run with hash {found!s:.8}, not to {spec.run}")
    if digest != data.digest:
        raise CheckpointError(f"{path}: was trained on data with digest {digest}, the prepared data has {data.digest}")
    return content


def features(spec: RunSpec, data: Prepared, out: Path, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Features of the probe's training and test images: (n, f) and (m, f), float32."""
    source = SOURCES[spec.benchmark]
    images = [open_images(data[name], source, spec, runtime.device) for name in ("train", "test")]
    if spec.method == "pixels":
        return raw_pixels(images[0]), raw_pixels(images[1])
    encoder = build_encoder(spec, stream_seed(spec.seed, "weights"))
    if spec.trained:
        load_encoder(out / ENCODER, encoder, spec)
    placed = runtime.place(encoder)
    return extract(placed, images[0], runtime), extract(placed, images[1], runtime)


def probe(spec: RunSpec, data: Prepared, train: Tensor, test: Tensor) -> dict[str, float | None]:
    """Accuracies in percent; `linear_top5` is None for fewer than six classes."""
    labels = [torch.from_numpy(data[name].labels).to(train.device) for name in ("train", "test")]
    knn = knn_accuracy(train, labels[0], test, labels[1], spec.knn_k)
    linear = linear_accuracy(
        train,
        labels[0],
        test,
        labels[1],
        num_classes=SOURCES[spec.benchmark].num_classes,
        generator=stream(spec.seed, "probe"),
        epochs=spec.probe_epochs,
        batch_size=spec.probe_batch_size,
        lr=spec.probe_lr,
        weight_decay=spec.probe_weight_decay,
    )
    return {"linear_top1": linear[1], "linear_top5": linear.get(5), "knn5_top1": knn}
