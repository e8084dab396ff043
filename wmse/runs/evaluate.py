"""Evaluation of a run: features once, then the linear probe and 5-nn; writes the run's result.json."""

from __future__ import annotations

import time
from typing import Any

from wmse.datasets import SOURCES
from wmse.errors import CheckpointError, DataError
from wmse.locks import exclusive_lock, patience
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runs.folder import ENCODER, PRETRAINED
from wmse.runs.job import Job
from wmse.runs.record import misfits, read_record, vouch_for_file, write_record

EVALUATION_MEMORY = (
    "The features of all images are held at once: evaluate on a machine with more memory, or on the CPU (device: cpu). "
    "The training is not affected"
)


def evaluate(job: Job) -> dict[str, Any]:
    """Evaluate a run and write result.json with every number's provenance; returns its content.

    Raises CheckpointError: the encoder or pretrain.json is missing, changed or of another run, or somebody works on it.
    """
    name = f"wmse evaluate {job.spec.run}"
    with exclusive_lock(job.folder.lock, name, CheckpointError, patience(), job.log):
        return _evaluate(job)


def _evaluate(job: Job) -> dict[str, Any]:
    from wmse.features import map_features, probe_features, run_features  # imports torch
    from wmse.runtime import out_of_memory

    spec, runtime = job.spec, job.runtime
    started = time.perf_counter()
    pretrained = _read_pretrained(job) if spec.trained else {}
    evaluation: dict[str, Any] = {"train_images": 0, "test_images": 0}
    metrics: dict[str, float | None] = {}
    points: dict[str, str] | None = None
    if SOURCES[spec.probed].labelled:
        with out_of_memory(lambda: f"{spec.run}: evaluation", runtime.device, EVALUATION_MEMORY):
            train, test = run_features(job)
            seconds = time.perf_counter() - started
            job.log(f"{spec.run}: features {tuple(train.shape)} and {tuple(test.shape)} in {seconds:.1f} s")
            metrics = probe_features(job, train, test)
            points = map_features(job, test)
        evaluation = {"train_images": len(train), "test_images": len(test), "features": train.shape[1]}
        job.log(", ".join(f"{name} {value:.2f} %" for name, value in metrics.items() if value is not None))
    else:
        job.log(f"{spec.run}: {spec.probed} has no labels: no accuracies (`evaluate_on` names another benchmark)")
    here = provenance(runtime.describe())
    content = {
        "benchmark": spec.benchmark,
        "method": spec.method,
        "d": spec.d if spec.trained else None,
        "variant": spec.variant,
        "seed": spec.seed,
        "metrics": metrics,
        "map": points,
        "pretrain": pretrained.get("pretrain"),
        "evaluation": {
            "wall_seconds": round(time.perf_counter() - started, 1),
            **evaluation,
            "peak_memory_bytes": peak_memory_bytes(runtime.device.type),
        },
        # A trained run's numbers come from its training; where the probes ran is recorded beside it.
        "provenance": pretrained.get("provenance") or here,
        "evaluation_provenance": here,
        "files": pretrained.get("files", {}),
    }
    if spec.evaluate_on:
        content["evaluation_data"] = {"benchmark": spec.probed, "digest": job.probe.digest}
    return write_record(job.folder.result, job, content)


def _read_pretrained(job: Job) -> dict[str, Any]:
    """The content of pretrain.json, if it and the encoder are this run's; CheckpointError otherwise."""
    folder = job.folder
    if not folder.pretrained.exists():
        raise CheckpointError(f"{folder.pretrained}: is missing: run `wmse pretrain {job.spec.name}` first")
    try:
        record = read_record(folder.pretrained)
        for reason in misfits(record, spec=job.spec, data={job.spec.data_key: job.data.digest}):
            raise record.error(reason)
        record.get("pretrain", dict)
        if folder.encoder.is_file():  # otherwise loading it says what is wrong
            vouch_for_file(folder.encoder, record.files.get(ENCODER, ""), PRETRAINED)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    return record.content
