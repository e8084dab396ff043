"""The files of a run's directory: training checkpoints, encoders, and the check that they belong to the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wmse.config import RunSpec
from wmse.encoder import Encoder
from wmse.errors import CheckpointError
from wmse.files import atomic_path

CHECKPOINT = "checkpoint.pt"
ENCODER = "encoder.safetensors"
FORMAT = 1


def save_checkpoint(path: Path, spec: RunSpec, state: dict[str, Any]) -> None:
    """Write the full training state atomically; `state` holds tensors and plain values only."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "run": spec.run, "hash": spec.hash, **state}, temporary)


def load_checkpoint(path: Path, spec: RunSpec) -> dict[str, Any]:
    """Read a training state of this very run; nothing in the file is executed.

    Raises:
        CheckpointError: unreadable, or of another configuration.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file it cannot or will not read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}): remove it to start the run again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this version: remove it to start the run again")
    if state["hash"] != spec.hash:
        raise CheckpointError(
            f"{path}: belongs to the run {state['run']} with hash {state['hash'][:8]}, not to {spec.run} with "
            f"{spec.hash[:8]}: its configuration differs. Use another directory, or remove the file"
        )
    return state


def save_encoder(path: Path, encoder: Encoder, spec: RunSpec, data_digest: str) -> None:
    """Write the encoder's weights as safetensors, with torchvision's parameter names."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    # One entry, because safetensors writes several in random order, and equal runs shall give equal files.
    metadata = {"wmse": json.dumps({"run": spec.run, "hash": spec.hash, "data": data_digest})}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_encoder(path: Path, encoder: Encoder, spec: RunSpec) -> None:
    """Fill `encoder` with the weights of this very run.

    Raises:
        CheckpointError: missing, damaged, or of another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("wmse", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = metadata if isinstance(metadata, dict) else {}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable encoder ({error}): run the pretraining again") from None
    if metadata.get("hash") != spec.hash:
        raise CheckpointError(f"{path}: the encoder of {metadata.get('run')!s:.80}, not of {spec.run}")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged ({reason}): run the pretraining again") from None
