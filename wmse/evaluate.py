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
from wmse.files import content_digest, file_digest, write_sealed_json
from wmse.images import open_images
from wmse.locks import exclusive_lock
from wmse.methods import build_encoder
from wmse.pretrain import PRETRAINED
from wmse.probes import knn_accuracy, linear_accuracy
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runtime import Runtime, out_of_memory
from wmse.streams import stream, stream_seed

RESULT = "result.json"
MEMORY_REMEDY = (
    "The features of all images are held at once: evaluate on a machine with more memory, or on the CPU (device: cpu). "
    "The training is not affected"
)


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
        CheckpointError: the encoder or pretrain.json is missing, changed or of another run, or a process works on it.
    """
    with exclusive_lock(out / ".lock", f"wmse evaluate {spec.run}", CheckpointError):
        return _evaluate(spec, data, out, runtime, preset, log)


def _evaluate(
    spec: RunSpec, data: Prepared, out: Path, runtime: Runtime, preset: str, log: Callable[[str], None]
) -> dict[str, Any]:
    started = time.perf_counter()
    pretrained = _read_pretrained(out, spec, data) if spec.trained else {}
    with out_of_memory(lambda: f"{spec.run}: evaluation", runtime.device, MEMORY_REMEDY):
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
        "files": pretrained.get("files", {}),
    }
    write_sealed_json(out / RESULT, result)
    return result


def _read_pretrained(out: Path, spec: RunSpec, data: Prepared) -> dict[str, Any]:
    path = out / PRETRAINED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, digest, encoder = content["spec_hash"], content["data"]["digest"], content["files"][ENCODER]
        seal = content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error!r:.200}): run the pretraining of {spec.run} first"
        ) from None
    if seal != content_digest(content):
        raise CheckpointError(f"{path}: was changed after it was written: run the pretraining of {spec.run} again")
    if found != spec.hash:
        raise CheckpointError(f"{path}: belongs to a run with hash {found!s:.8}, not to {spec.run}")
    if digest != data.digest:
        raise CheckpointError(f"{path}: was trained on data with digest {digest}, the prepared data has {data.digest}")
    if (out / ENCODER).is_file() and encoder != f"sha256:{file_digest(out / ENCODER)}":
        raise CheckpointError(
            f"{out / ENCODER}: is not the encoder that {PRETRAINED} describes: remove it and run the pretraining of "
            f"{spec.run} again, which continues from its last checkpoint"
        )
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
