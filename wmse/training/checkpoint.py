"""Training checkpoints: written so that a kill or a full disk costs none, and read only if they are this run's."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wmse.config import RunSpec
from wmse.errors import CheckpointError
from wmse.files import atomic_path
from wmse.runs.folder import CHECKPOINT_NAME, checkpoint_name
from wmse.runtime import lacks_memory

CHECKPOINT_FORMAT = 3
DAMAGED = ".damaged"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder with their steps, the newest (of the highest step) first; there need be no folder."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := CHECKPOINT_NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def save_checkpoint(folder: Path, spec: RunSpec, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the full training state (tensors and plain values only), then remove all but the newest `keep`.

    The digest in the name is that of the bytes in memory, so that it also vouches for the way to the disk.
    """
    content = io.BytesIO()  # written to a file, torch would report a full disk as an error of its own
    torch.save({"format": CHECKPOINT_FORMAT, "run": spec.run, "hash": spec.hash, **state}, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    new = folder / checkpoint_name(step, digest)
    with atomic_path(new) as temporary:
        temporary.write_bytes(content.getbuffer())
    earlier = [path for at, path in list_checkpoints(folder) if at < step]
    for _, path in list_checkpoints(folder):
        if path not in (new, *earlier[: keep - 1]):
            path.unlink(missing_ok=True)


def load_checkpoint(folder: Path, spec: RunSpec, log: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest intact training state of this very run, None if there is none yet; nothing in a file is executed.

    A damaged file is renamed, so that it neither counts among the newest ones nor is lost; `log` gets a warning.

    Raises CheckpointError: all are damaged (starting anew is for the user to decide), or of another configuration.
    """
    for _, path in list_checkpoints(folder):
        content, damage = _read(path)
        if content is not None:
            return _state_in(path, content, spec)
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
    found = hashlib.sha256(content).hexdigest()[:16]
    expected = CHECKPOINT_NAME.fullmatch(path.name)[2]
    if found != expected:
        return None, f"damaged: its sha256 begins with {found} ({len(content):,} bytes), not as its name says"
    return content, ""


def _state_in(path: Path, content: bytes, spec: RunSpec) -> dict[str, Any]:
    again = f"use the version of this software that wrote it, or remove {path.parent} to start from step 0"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file it cannot or will not read
        if lacks_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}): {again}") from None
    if not isinstance(state, dict) or state.get("format") not in (2, CHECKPOINT_FORMAT):
        raise CheckpointError(f"{path}: not a checkpoint of this version: {again}")
    if state["hash"] != spec.hash:
        raise CheckpointError(
            f"{path}: belongs to the run {state['run']} with hash {state['hash'][:8]}, not to {spec.run} with "
            f"{spec.hash[:8]}: its configuration differs. Use another directory, or remove the file"
        )
    if state["format"] == 2:
        state["progress"] = _upgraded(state["progress"])
    return state


def _upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """The progress of format 2 in today's form; `unevaluated` is the record of an epoch that was being evaluated."""
    epoch = {"loss_sum": old["loss_sum"], "seconds": old["epoch_seconds"]}
    if ended := old["unevaluated"]:
        epoch = {name: ended[name] for name in ("embedding_std", "effective_rank")}
        epoch["seconds"] = ended["seconds"] - sum(record["seconds"] for record in old["history"][-1:])
        epoch["loss_sum"] = ended["loss"] * (ended["step"] // ended["epoch"])
    return {"epoch": epoch, **{name: old[name] for name in ("step", "resumed", "history")}}
