"""Trained encoders, read from a run's folder with what its records say about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wmse.config import RunSpec
from wmse.datasets import SOURCES
from wmse.encoder import Encoder, Preprocessing, fill_encoder, read_encoder
from wmse.errors import CheckpointError, ConfigError, DataError
from wmse.files import file_digest
from wmse.runs.folder import ENCODER, PRETRAINED, RunFolder
from wmse.runs.record import misfits, read_record, vouch_for_file


@dataclass(frozen=True)
class Pretrained:
    """A trained encoder and its origin.

    Attributes:
        file: of the encoder.
        digest: "sha256:<hex>" of that file.
        encoder: in eval mode, on the CPU; its `preprocessing` is set.
        training: the content of the run's pretrain.json, empty where only the file is there.
        result: the same of result.json, empty before the evaluation.
    """

    file: Path
    digest: str
    spec: RunSpec
    encoder: Encoder
    preprocessing: Preprocessing
    training: dict[str, Any]
    result: dict[str, Any]


def load_encoder(path: str | Path) -> Encoder:
    """The trained encoder of a run, in eval mode, on the CPU.

    Args:
        path: the run's folder, or its encoder.safetensors, which need not lie there any more.

    Returns:
        A network that maps float32 images (n, 3, size, size) to features (n, f); its attribute `preprocessing` makes
        such images of uint8 (n, 3, h, w), and knows the size, mean and standard deviation.

    Raises:
        CheckpointError: missing, damaged, or not what the run's records vouch for.
    """
    return open_run(path).encoder


def open_run(path: str | Path) -> Pretrained:
    """As `load_encoder`, with all that is known about the encoder. A record beside it that does not fit is an error."""
    path = Path(path)
    file = path / ENCODER if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"{file}: there is no encoder: give the folder of a run whose `wmse pretrain` has finished"
        )
    folder = RunFolder(file.parent)
    about, state = read_encoder(file)
    try:
        training = _record(folder.pretrained) if file.name == ENCODER else {}
        if training:
            vouch_for_file(file, training["files"].get(ENCODER, ""), PRETRAINED)
        spec = _spec(file, about, training)
        result = _record(folder.result, spec) if training else {}
    except DataError as error:
        raise CheckpointError(str(error)) from None
    try:
        with torch.device("meta"):  # no memory for weights that are not those of the file
            encoder = Encoder(spec.arch, spec.stem, spec.width)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    fill_encoder(file, encoder, state)
    encoder.preprocessing = _preprocessing(file, about, spec)
    return Pretrained(
        file, f"sha256:{file_digest(file)}", spec, encoder.eval(), encoder.preprocessing, training, result
    )


def _record(file: Path, spec: RunSpec | None = None) -> dict[str, Any]:
    """The content of a record of a run, empty if it is not there. DataError if it is not to be trusted."""
    if not file.exists():
        return {}
    record = read_record(file)
    for reason in misfits(record, spec=spec):
        raise record.error(reason)
    return {**record.content, "files": record.files}


def _spec(file: Path, about: dict[str, Any], training: dict[str, Any]) -> RunSpec:
    """The run that an encoder is of: the file says so itself, or in earlier versions only the record beside it."""
    try:
        spec = RunSpec.from_dict(about.get("spec") or training["spec"], runnable=False)
    except (KeyError, TypeError, AttributeError, ConfigError):
        raise CheckpointError(
            f"{file}: does not say which network it is of: give the folder of its run, with {PRETRAINED}"
        ) from None
    if spec.hash != about.get("hash"):
        raise CheckpointError(f"{file}: the encoder of {about.get('run')!s:.80}, not of {spec.run}")
    return spec


def _preprocessing(file: Path, about: dict[str, Any], spec: RunSpec) -> Preprocessing:
    try:
        if about.get("preprocessing"):
            values = about["preprocessing"]
            mean, std = (tuple(float(x) for x in values[key]) for key in ("mean", "std"))
            return Preprocessing(int(values["resize"]), int(values["size"]), mean, std)
        source = SOURCES[spec.benchmark]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(
            f"{file}: does not say how its images were normalised: train the run again (`wmse pretrain`)"
        ) from None
    return Preprocessing.of(spec, source.mean, source.std)
