"""Children to be killed: forked from a process that has imported torch, so that a death costs no second of imports."""

from __future__ import annotations

import builtins
import csv
import io
import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file

from builders.data import tiny_data
from builders.runs import TIMING, make_job
from wmse.config import RunSpec
from wmse.datasets import ArrayDataset
from wmse.errors import WmseError
from wmse.runs.evaluate import evaluate
from wmse.runs.folder import CHECKPOINTS, ENCODER, HISTORY, PRETRAINED, RESULT
from wmse.training import CheckpointPolicy, Trainer, pretrain
from wmse.training.checkpoint import list_checkpoints, load_checkpoint

DEFAULT_POLICY = CheckpointPolicy()
CRASHED = 99  # the exit status of a child that ended with an exception that is no message


def start(work: Callable[[], object], log: Path) -> int:
    """Fork a child that does `work`; it exits with 0, 1 for a WmseError, or as it says, else CRASHED; see `log`."""
    pid = os.fork()
    if pid:
        return pid
    status = CRASHED
    try:
        sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115 (until the end of the process)
        try:
            work()
            status = 0
        except WmseError as error:
            print(f"wmse: error: {error}")
            status = 1
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
    finally:
        os._exit(status)  # no fixture, buffer or exit handler of the parent runs twice


def wait(pid: int) -> int:
    """The exit status of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class SharedCount:
    """An integer that a child counts up and its parent reads, also after the child was killed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    def add(self) -> None:
        self.memory[:8] = (self.value + 1).to_bytes(8, "little")


class KillPoints:
    """Kills this process at its n-th moment around the calls that change what lies in `folder`.

    The moments are the middle of each write and, `everywhere`, before and after each open for writing, fsync, rename,
    unlink and mkdir. TensorBoard's events are left out: its thread writes them when it likes.
    """

    def __init__(self, folder: Path, n: int, everywhere: bool) -> None:
        self.folder, self.left, self.everywhere = folder, n, everywhere

    def point(self, in_write: bool = False) -> None:
        self.left -= in_write or self.everywhere
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def concerns(self, target: Any) -> bool:
        is_descriptor = isinstance(target, int)
        path = Path(f"/proc/self/fd/{target}").readlink() if is_descriptor else Path(os.fsdecode(target)).absolute()
        return path.is_relative_to(self.folder) and "tensorboard" not in path.parts

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **named: Any) -> Any:
            if not self.concerns(target):
                return function(target, *rest, **named)
            self.point()
            result = function(target, *rest, **named)
            self.point()
            return result

        return call

    def install(self) -> None:
        """In the child only, whose functions nobody else uses."""
        for name in ("replace", "rename", "unlink", "mkdir", "fsync"):
            setattr(os, name, self.around(getattr(os, name)))
        plain = builtins.open

        def opened(target: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self.concerns(target):
                return plain(target, mode, *rest, **named)
            self.point()
            file = TornFile(plain(target, mode, *rest, **named), self.point)
            self.point()
            return file

        builtins.open = io.open = opened


class TornFile:
    """A file whose writes reach the disk in two halves, with a moment between them."""

    def __init__(self, file: Any, point: Callable[[bool], None]) -> None:
        self.file, self.point = file, point

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.point(True)
        self.file.write(content[half:])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> TornFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.file.close()


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of history.csv without the columns that measure."""
    with open(folder / HISTORY, encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]


@dataclass
class Reference:
    """A run that nothing disturbs, to compare others with."""

    spec: RunSpec
    folder: Path
    data: ArrayDataset = field(default_factory=tiny_data)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.job(self.folder)
        self.encoder = load_file(self.folder / ENCODER)
        self.history = history(self.folder)
        self.metrics = json.loads((self.folder / RESULT).read_text())["metrics"]

    def job(
        self, folder: Path, checkpoints: CheckpointPolicy = DEFAULT_POLICY, steps: SharedCount | None = None
    ) -> None:
        """Pretraining and evaluation, from wherever the folder's files let them begin; `steps` counts those taken."""
        step = Trainer.step

        def counted(trainer: Trainer, *index: torch.Tensor) -> Any:
            output = step(trainer, *index)
            steps.add()
            return output

        if steps:  # only in a child, which keeps the change to itself
            Trainer.step = counted
        pretrain(make_job(self.spec, self.data, folder, checkpoints=checkpoints))
        evaluate(make_job(self.spec, self.data, folder))

    def assert_same(self, folder: Path) -> None:
        """Encoder and history of a finished run are this one's bit for bit, and so are its metrics if it has some."""
        encoder = load_file(folder / ENCODER)
        assert encoder.keys() == self.encoder.keys()
        assert [name for name in encoder if not torch.equal(encoder[name], self.encoder[name])] == []
        assert history(folder) == self.history
        assert json.loads((folder / PRETRAINED).read_text())["spec_hash"] == self.spec.hash
        if (folder / RESULT).exists():
            assert json.loads((folder / RESULT).read_text())["metrics"] == self.metrics

    def assert_whole(self, folder: Path) -> int:
        """Whatever lies there under its name after a kill is complete; returns the step of the newest checkpoint."""
        if (folder / HISTORY).exists():
            rows = history(folder)
            assert rows == self.history[: len(rows)]
        for name in (PRETRAINED, RESULT):
            if (folder / name).exists():
                self.assert_same(folder)
        if (folder / ENCODER).exists():
            assert load_file(folder / ENCODER).keys() == self.encoder.keys()
        found = list_checkpoints(folder / CHECKPOINTS)
        for _, path in found:
            assert load_checkpoint(path.parent, self.spec, log=_no_warning)
        return found[0][0] if found else 0


def _no_warning(line: str) -> None:
    raise AssertionError(line)
