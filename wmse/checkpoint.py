"""The files of a run's directory: training checkpoints, encoders, and the check that they belong to the run."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wmse.config import RunSpec
from wmse.encoder import Encoder
from wmse.errors import CheckpointError
from wmse.files import atomic_path
from wmse.runtime import lacks_memory

CHECKPOINTS = "checkpoints"
ENCODER = "encoder.safetensors"
FORMAT = 2
NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.pt")  # the step, and the first digits of the content's sha256
DAMAGED = ".damaged"


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written, every so many seconds or (if given) epochs, and how many of them stay."""

    seconds: float = 600
    epochs: int | None = None
    keep: int = 2


DEFAULT_POLICY = CheckpointPolicy()


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder with their steps, the newest (of the highest step) first; there need be no folder."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def save_checkpoint(folder: Path, spec: RunSpec, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the full training state (tensors and plain values only), then remove all but the newest `keep`.

    The digest in the name is that of the bytes in memory, so that it also vouches for the way to the disk.
    """
    content = io.BytesIO()  # written to a file, torch would report a full disk as an error of its own
    torch.save({"format": FORMAT, "run": spec.run, "hash": spec.hash, **state}, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    new = folder / f"step-{step:09d}-{digest[:16]}.pt"
    with atomic_path(new) as temporary:
        temporary.write_bytes(content.getbuffer())
    earlier = [path for at, path in list_checkpoints(folder) if at < step]
    for _, path in list_checkpoints(folder):
        if path not in (new, *earlier[: keep - 1]):
            path.unlink(missing_ok=True)


def load_checkpoint(folder: Path, spec: RunSpec, log: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest intact training state of this very run, None if there is none yet; nothing in a file is executed.

    A damaged file is renamed, so that it neither counts among the newest ones nor is lost; `log` gets a warning.

    Raises:
        CheckpointError: all are damaged (starting anew is for the user to decide), or of another configuration.
    """
    for _, path in list_checkpoints(folder):
        content, damage = _read(path)
        if content is not None:
            return _parse(path, content, spec)
        path.rename(path.with_name(path.name + DAMAGED))
        log(f"warning: {path}: {damage}; it is now {path.name}{DAMAGED}, and the checkpoint before it is used")
    damaged = sorted(path.name for path in folder.glob(f"*{DAMAGED}"))
    if damaged:
        raise CheckpointError(
            f"{folder}: no checkpoint is intact ({', '.join(damaged)}), and the run does not start again by itself: "
            f"put back a copy of one under its name without {DAMAGED}, or remove this folder to start from step 0"
        )
    return None


def _read(path: Path) -> tuple[bytes | None, str]:
    """The content of a checkpoint, or None and what is wrong with it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:  # a matter of permissions or limits says nothing about the file
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror}): make it readable, or move it away to use an older one"
            ) from None
        return None, f"cannot be read ({error.strerror})"
    found, expected = hashlib.sha256(content).hexdigest()[:16], NAME.fullmatch(path.name)[2]
    if found != expected:
        return None, f"damaged: its sha256 begins with {found} ({len(content):,} bytes), not as its name says"
    return content, ""


def _parse(path: Path, content: bytes, spec: RunSpec) -> dict[str, Any]:
    again = f"use the version of this software that wrote it, or remove {path.parent} to start from step 0"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file it cannot or will not read
        if lacks_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}): {again}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this version: {again}")
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
