"""Checkpoints that are damaged, forged, old or out of reach, and how many of them stay."""

from __future__ import annotations

import errno
import io
import pickle
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.forked import Reference
from builders.hostile import Canary
from builders.runs import EVERY_STEP, make_job, make_trainer, tiny_spec
from wmse.datasets import ArrayDataset
from wmse.errors import CheckpointError, OutOfMemoryError
from wmse.runs.folder import CHECKPOINTS
from wmse.training import CheckpointPolicy, Stopped, pretrain
from wmse.training.checkpoint import list_checkpoints


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 3] ^= 1
    return bytes(changed)


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    damage: Callable[[bytes], bytes], tmp_path: Path, reference: Reference, counts: Counter[str]
) -> None:
    run, lines = tmp_path / "run", []
    trainer = make_trainer(reference.spec, reference.data, run)
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == 5 else None
    with pytest.raises(Stopped):
        trainer.run()
    (newest_step, newest), (before, _), *_ = list_checkpoints(run / CHECKPOINTS)
    assert (newest_step, before) == (5, 4)
    newest.write_bytes(damage(newest.read_bytes()))
    counts["faults"] += 1
    pretrain(make_job(reference.spec, reference.data, run, log=lines.append, checkpoints=EVERY_STEP))
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert str(newest) in warning
    assert "sha256" in warning
    assert any("at step 4 of 9" in line for line in lines)
    assert newest.with_name(newest.name + ".damaged").exists()
    reference.assert_same(run)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_spec(), data, tmp_path)
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == 4 else None
    with pytest.raises(Stopped):
        trainer.run()
    found = [path for _, path in list_checkpoints(tmp_path / CHECKPOINTS)]
    copy = shutil.copy(found[1], tmp_path / "backup")
    for path in found:
        path.write_bytes(b"damaged")
    for _ in range(2):  # asking again changes nothing
        with pytest.raises(
            CheckpointError, match=rf"{CHECKPOINTS}: no checkpoint is intact \(step.*remove this folder"
        ):
            make_trainer(tiny_spec(), data, tmp_path).run()
    shutil.copy(copy, found[1])  # as the message says
    again = make_trainer(tiny_spec(), data, tmp_path)
    again.run()
    assert again.progress.resumed == 1


@pytest.mark.parametrize(
    ("module", "name", "error", "outcome"),
    [
        (Path, "read_bytes", PermissionError(errno.EACCES, "Permission denied"), CheckpointError),
        (torch, "load", RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_now_is_not_called_damaged(
    module: object,
    name: str,
    error: Exception,
    outcome: type[Exception],
    data: ArrayDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(tiny_spec(), data, tmp_path)
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == 2 else None
    with pytest.raises(Stopped):
        trainer.run()
    before = list_checkpoints(tmp_path / CHECKPOINTS)

    def failing(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(module, name, failing)
    with pytest.raises(outcome, match=r"step-000000002-\w+\.pt: cannot be read|out of memory"):
        pretrain(make_job(tiny_spec(), data, tmp_path))
    assert list_checkpoints(tmp_path / CHECKPOINTS) == before


def test_a_newest_checkpoint_on_a_bad_block_is_set_aside(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_spec(), data, tmp_path)
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == 2 else None
    with pytest.raises(Stopped):
        trainer.run()
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if "step-000000002" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    lines: list[str] = []
    make_trainer(tiny_spec(), data, tmp_path, lines).run()
    assert any("warning: " in line and "step-000000002" in line and "Input/output error" in line for line in lines)
    assert any("at step 1 of 9" in line for line in lines)


def test_a_forged_checkpoint_is_refused_and_executes_nothing(data: ArrayDataset, tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINTS
    folder.mkdir()
    zipped = io.BytesIO()
    torch.save({"format": 2, "hash": Canary(tmp_path / "executed")}, zipped)
    for content in (zipped.getvalue(), pickle.dumps(Canary(tmp_path / "executed"), protocol=2), b"", b"text"):
        path = folder / f"step-000000001-{sha256(content).hexdigest()[:16]}.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"step-000000001-\w+\.pt: not a readable checkpoint"):
            make_trainer(tiny_spec(), data, tmp_path).run()
        path.unlink()
    assert not (tmp_path / "executed").exists()


def test_checkpoints_come_as_asked_and_only_the_newest_stay(data: ArrayDataset, tmp_path: Path) -> None:
    found: list[list[int]] = []

    def log(line: str) -> None:
        if line.startswith("epoch"):
            found.append([step for step, _ in list_checkpoints(tmp_path / CHECKPOINTS)])

    policy = CheckpointPolicy(seconds=1e9, epochs=2, keep=2)
    pretrain(make_job(tiny_spec(epochs=7), data, tmp_path, log=log, checkpoints=policy))
    assert found == [[], [], [6], [6], [12, 6], [12, 6], [18, 12]]
    assert [step for step, _ in list_checkpoints(tmp_path / CHECKPOINTS)] == [21, 18]


def as_format_2(progress: dict[str, Any]) -> dict[str, Any]:
    """The progress as version 2 of the checkpoints wrote it."""
    old, epoch = dict(progress), progress["epoch"]
    del old["epoch"]
    if epoch["embedding_std"] is None:
        return {**old, "seconds": 1.5, "epoch_seconds": 0.5, "loss_sum": epoch["loss_sum"], "unevaluated": None}
    record = {"epoch": len(old["history"]) + 1, "step": old["step"], "seconds": 2.5, "loss": epoch["loss_sum"] / 3}
    record |= {name: epoch[name] for name in ("embedding_std", "effective_rank")}
    return {**old, "seconds": 2.5, "epoch_seconds": 0.0, "loss_sum": 0.0, "unevaluated": record}


@pytest.mark.parametrize("questions", [2, 4, 8])  # within an epoch, between two, within the second one's evaluation
def test_checkpoints_of_format_2_are_continued(questions: int, tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    trainer = make_trainer(reference.spec, reference.data, run, checkpoints=CheckpointPolicy())
    asked = iter([None] * (questions - 1) + [signal.SIGTERM])
    trainer.stop = lambda: next(asked)
    with pytest.raises(Stopped):
        trainer.run()
    ((step, path),) = list_checkpoints(run / CHECKPOINTS)
    state = torch.load(path, weights_only=True)
    path.unlink()
    content = io.BytesIO()
    torch.save({**state, "format": 2, "progress": as_format_2(state["progress"])}, content)
    digest = sha256(content.getvalue()).hexdigest()
    path.with_name(f"step-{step:09d}-{digest[:16]}.pt").write_bytes(content.getvalue())
    lines: list[str] = []
    pretrain(make_job(reference.spec, reference.data, run, log=lines.append))
    assert any(f"at step {step} of 9" in line for line in lines)
    reference.assert_same(run)
