"""Pretraining: the loop, its records and its checkpoints.

Everything random comes from streams indexed by epoch or step (`wmse.streams`), so the position in the run is one
number, the step, and a resumed run computes what a straight run computes, bit for bit on the CPU.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmse.checkpoint import CHECKPOINT, ENCODER, load_checkpoint, save_checkpoint, save_encoder
from wmse.config import RunSpec, paper_differences
from wmse.datasets import SOURCES, Prepared
from wmse.errors import CheckpointError, ConfigError, TrainingError
from wmse.features import extract
from wmse.files import digests, exclusive_lock, write_sealed_json, write_text
from wmse.images import open_images
from wmse.methods import StepOutput, build_method
from wmse.optim import build_optimizer, learning_rate
from wmse.probes import embedding_spread, knn_accuracy
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runtime import Runtime
from wmse.streams import stream, stream_seed
from wmse.whitening import SingularCovarianceError, check_factorisations

HISTORY = "history.csv"
PRETRAINED = "pretrain.json"
SAME_REQUEST = 2.0  # seconds within which a repeated signal is the same request to stop
LOG_EVERY = 20  # steps between updates of the progress bar: reading the loss makes the host wait for the device


class Stopped(Exception):
    """The run was interrupted after writing a checkpoint."""

    def __init__(self, step: int, signal_number: int | None = None) -> None:
        self.step, self.signal = step, signal_number
        super().__init__(f"stopped after step {step}; the same command continues from there")


@dataclass
class EpochRecord:
    """One line of history.csv.

    `seconds` is the run's training time so far, without evaluations; `knn5_top1` is None in epochs without one.
    """

    epoch: int
    step: int
    views: int
    seconds: float
    loss: float
    lr: float
    views_per_second: float
    embedding_std: float
    effective_rank: float
    knn5_top1: float | None
    peak_memory_mb: float


class Clock:
    """Seconds since it was made, plus those of an earlier session."""

    def __init__(self, earlier: float = 0.0) -> None:
        self.started = time.perf_counter() - earlier

    def seconds(self) -> float:
        return time.perf_counter() - self.started


@dataclass
class Progress:
    """Where a run is, apart from weights and optimiser: everything here goes into the checkpoint."""

    step: int = 0
    seconds: float = 0.0  # training time of the finished epochs
    epoch_seconds: float = 0.0  # of the current epoch
    loss_sum: float = 0.0  # over the current epoch's steps
    resumed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run of one method on one benchmark.

    Args:
        out: the run's directory.
        stop: asked after every step; True writes a checkpoint and raises `Stopped`.
        log: gets one line an epoch.
        progress_bar: None shows one on a terminal only.
    """

    def __init__(
        self,
        spec: RunSpec,
        data: Prepared,
        out: Path,
        runtime: Runtime,
        *,
        checkpoint_minutes: float = 10,
        stop: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = print,
        progress_bar: bool | None = None,
    ) -> None:
        self.spec, self.data, self.out, self.runtime = spec, data, out, runtime
        self.shows_bar = sys.stderr.isatty() if progress_bar is None else progress_bar
        self.checkpoint_seconds, self.stop, self.log = 60 * checkpoint_minutes, stop, log
        source = SOURCES[spec.benchmark]
        device = runtime.device
        self.images = open_images(data["pretrain"], source, spec, device)
        self.steps_per_epoch = len(self.images) // spec.batch_size  # the last partial batch is dropped
        if not self.steps_per_epoch:
            raise ConfigError(f"{spec.cell}: batch_size ({spec.batch_size}) exceeds the {len(self.images)} images")
        self.total_steps = spec.epochs * self.steps_per_epoch
        self.method = runtime.place(build_method(spec, stream_seed(spec.seed, "weights")))
        self.optimizer = build_optimizer(spec, self.method)
        self.probe = [
            (open_images(data[name], source, spec, device), torch.from_numpy(data[name].labels).to(device))
            for name in ("train", "test")
        ]
        if runtime.compile:
            self.method.encoder.compile()  # in place: the names of the parameters stay
        self.progress = Progress()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.clock = Clock()
        self.guard = StepGuard(spec, self.steps_per_epoch)

    def run(self) -> list[dict[str, Any]]:
        """Train to the end (from the checkpoint, if there is one); returns the history."""
        self._restore()
        progress, saved_at = self.progress, time.monotonic()
        with self._tensorboard() as board, self._bar() as bar:
            while progress.step < self.total_steps:
                for output in self._epoch_steps(bar):
                    if progress.step % self.steps_per_epoch == 0:
                        self._end_epoch(output, board)
                    stopping = self.stop()
                    if stopping or time.monotonic() - saved_at > self.checkpoint_seconds:
                        self.save()
                        saved_at = time.monotonic()
                    if stopping:
                        raise Stopped(progress.step)
        self.save()
        return progress.history

    def _epoch_steps(self, bar: Any) -> Iterator[StepOutput]:
        """The remaining steps of the current epoch; a resumed epoch goes on in the same order of images."""
        progress, size = self.progress, self.spec.batch_size
        epoch, first = divmod(progress.step, self.steps_per_epoch)
        order = torch.randperm(len(self.images), generator=stream(self.spec.seed, "order", epoch))
        self.loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=self.runtime.device)
        self.clock = Clock(progress.epoch_seconds)
        batches = order[: self.steps_per_epoch * size].split(size)
        for i in range(first, self.steps_per_epoch):
            output = self.step(batches[i], *batches[i + 1 : i + 2])
            self.loss_sum += output.loss.detach()
            if i % LOG_EVERY == 0 or i + 1 == self.steps_per_epoch:
                self._show(bar, epoch, i)
            yield output

    def step(self, index: Tensor, following: Tensor | None = None) -> StepOutput:
        """One optimiser step on the images `index` (N,), while those of the `following` step are fetched."""
        spec, step = self.spec, self.progress.step
        views = self.images.views(index, spec.d, spec.seed, step)
        if following is not None:
            self.images.prefetch(following)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, self.steps_per_epoch)
        self.method.train()
        with self.runtime.autocast():
            output = self.method([self.runtime.batch(view) for view in views], stream(spec.seed, "slices", step))
        self.guard.check(step, output)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        self.method.after_step(step // self.steps_per_epoch / spec.epochs)
        self.progress.step += 1
        return output

    # --- records ------------------------------------------------------------------------------------------------------

    def _end_epoch(self, output: StepOutput, board: Any) -> None:
        """Evaluate if it is due, and add a line to every record."""
        self.guard.flush()
        spec, progress = self.spec, self.progress
        epoch = progress.step // self.steps_per_epoch
        loss = self.loss_sum.item() / self.steps_per_epoch  # waits for the device, so that the time is right
        seconds = self.clock.seconds()
        views = self.steps_per_epoch * spec.batch_size * spec.d
        spread, rank = embedding_spread(output.embeddings[0])
        progress.seconds += seconds
        progress.loss_sum = progress.epoch_seconds = 0.0
        record = EpochRecord(
            epoch=epoch,
            step=progress.step,
            views=progress.step * spec.batch_size * spec.d,
            seconds=round(progress.seconds, 3),
            loss=loss,
            lr=self.optimizer.param_groups[0]["lr"],
            views_per_second=round(views / seconds, 1),
            embedding_std=spread.item(),
            effective_rank=rank.item(),
            knn5_top1=self.knn() if evaluation_due(spec, epoch) else None,
            peak_memory_mb=round(peak_memory_bytes(self.runtime.device.type) / 2**20, 1),
        )
        progress.history.append(asdict(record))
        write_text(self.out / HISTORY, history_csv(progress.history))
        for name, value in asdict(record).items():
            if value is not None and name not in ("epoch", "step"):
                board.add_scalar(name, value, record.step)
        knn = f", 5-nn {record.knn5_top1:.2f} %" if record.knn5_top1 is not None else ""
        self._say(
            f"epoch {record.epoch}/{spec.epochs}, step {record.step}, loss {record.loss:.4f}, lr {record.lr:.2e}, "
            f"{record.views_per_second:.0f} views/s, spread {record.embedding_std:.3f}, "
            f"rank {record.effective_rank:.1f}{knn}"
        )

    def _say(self, line: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():  # a line between two states of the bar
            self.log(line)

    def knn(self) -> float:
        """5-nn accuracy of the encoder as it is now, in percent."""
        (train, train_labels), (test, test_labels) = self.probe
        encoder = self.method.encoder
        features = [extract(encoder, images, self.runtime) for images in (train, test)]
        return knn_accuracy(features[0], train_labels, features[1], test_labels, self.spec.knn_k)

    @contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder = self.out / "tensorboard"
        # Events after the checkpoint belong to steps that are now repeated.
        with SummaryWriter(str(folder), purge_step=self.progress.step or None) as board:
            yield board

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        from tqdm import tqdm

        with tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            unit="step",
            disable=not self.shows_bar,
            dynamic_ncols=True,
        ) as bar:
            yield bar

    def _show(self, bar: Any, epoch: int, i: int) -> None:
        if bar.disable:
            return
        loss = self.loss_sum.item() / (i + 1)
        rate = (i + 1) * self.spec.batch_size * self.spec.d / self.clock.seconds()
        bar.set_description(f"{self.spec.cell} epoch {epoch + 1}/{self.spec.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} views/s", refresh=False)
        bar.update(self.progress.step - bar.n)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state; never a state whose last step was not checked."""
        self.guard.flush()
        if self.progress.step % self.steps_per_epoch:  # between epochs both are 0
            self.progress.loss_sum, self.progress.epoch_seconds = self.loss_sum.item(), self.clock.seconds()
        state = {
            "precision": self.runtime.precision,
            "data": self.data.digest,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        save_checkpoint(self.out / CHECKPOINT, self.spec, state)

    def _restore(self) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = load_checkpoint(path, self.spec)
        for key, now, advice in (
            ("precision", self.runtime.precision, "set `precision` to that value under `parameters`, or remove it"),
            ("data", self.data.digest, "prepare the same data again, or remove it"),
        ):
            if state[key] != now:
                raise CheckpointError(f"{path}: was made with {key} {state[key]}, this is {now}: {advice}")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        if self.progress.step < self.total_steps:
            self.progress.resumed += 1
            self.log(f"continuing {self.spec.run} at step {self.progress.step} of {self.total_steps}")


class StepGuard:
    """Finds a failed whitening or a loss that is not finite, without making the host wait for a GPU.

    On the CPU a step is checked at once. On a GPU its verdict is copied to the host in the background and read one
    step later, when it has long arrived.
    """

    def __init__(self, spec: RunSpec, steps_per_epoch: int) -> None:
        self.spec, self.steps_per_epoch = spec, steps_per_epoch
        self.pending: tuple[int, Tensor, Tensor | None, torch.cuda.Event] | None = None

    def check(self, step: int, output: StepOutput) -> None:
        finite, info = output.loss.detach().isfinite(), output.factorisations
        if not finite.is_cuda:
            self._judge(step, finite, info)
            return
        self.flush()
        host_info = None if info is None else info.to("cpu", non_blocking=True)
        host_finite = finite.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.pending = (step, host_finite, host_info, event)

    def flush(self) -> None:
        """Judge the step that is still pending."""
        if self.pending:
            step, finite, info, event = self.pending
            self.pending = None
            event.synchronize()
            self._judge(step, finite, info)

    def _judge(self, step: int, finite: Tensor, info: Tensor | None) -> None:
        where = f"{self.spec.run}: step {step} (epoch {step // self.steps_per_epoch + 1})"
        if info is not None:
            try:
                check_factorisations(info, self.spec.w_size, self.spec.embedding)
            except SingularCovarianceError as error:
                raise TrainingError(f"{where}: {error}") from None
        if not finite:
            raise TrainingError(f"{where}: the loss is not finite. A lower learning rate (lr) is the usual remedy")


def evaluation_due(spec: RunSpec, epoch: int) -> bool:
    """Whether the 5-nn accuracy is taken after this epoch (1, 2, ...): more often after the first drop of the rate."""
    final = spec.lr_drops[0] if spec.lr_drops else 0
    every = spec.eval_every_final if epoch > spec.epochs - final else spec.eval_every
    return epoch % every == 0 or epoch == spec.epochs


def history_csv(history: list[dict[str, Any]]) -> str:
    """The history as CSV; a value that was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(EpochRecord.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def pretrain(
    spec: RunSpec,
    data: Prepared,
    out: Path,
    runtime: Runtime,
    *,
    preset: str = "",
    checkpoint_minutes: float = 10,
    log: Callable[[str], None] = print,
    progress_bar: bool | None = None,
) -> None:
    """Train a run in its directory `out`: encoder.safetensors, history.csv, pretrain.json, TensorBoard events.

    SIGTERM, SIGINT and SIGUSR1 end it after the current step with a checkpoint (`Stopped`).
    """
    with exclusive_lock(out / ".lock", f"wmse pretrain {spec.run}", TrainingError), stop_on_signals() as received:
        trainer = Trainer(
            spec,
            data,
            out,
            runtime,
            checkpoint_minutes=checkpoint_minutes,
            stop=lambda: bool(received),
            log=log,
            progress_bar=progress_bar,
        )
        log(f"{spec.run}: {trainer.total_steps} steps of {spec.d} x {spec.batch_size} views on {runtime.describe()}")
        try:
            history = trainer.run()
        except Stopped as stopped:
            raise Stopped(stopped.step, received[0]) from None
        write_text(out / HISTORY, history_csv(history))
        save_encoder(out / ENCODER, trainer.method.encoder, spec, data.digest)
        files = digests(out, ENCODER, HISTORY)
        write_sealed_json(out / PRETRAINED, {**summary(trainer, preset), "files": files})


def summary(trainer: Trainer, preset: str) -> dict[str, Any]:
    """The content of pretrain.json: what was run, on what, and how it went."""
    spec, progress = trainer.spec, trainer.progress
    last = progress.history[-1]
    return {
        "format": 1,
        "run": spec.run,
        "preset": preset,
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "paper_differences": paper_differences(spec),
        "pretrain": {
            "epochs": last["epoch"],
            "steps": last["step"],
            "views": last["views"],
            "views_per_second": round(last["views"] / progress.seconds, 1),
            "wall_seconds": round(progress.seconds, 1),
            "peak_memory_bytes": round(max(row["peak_memory_mb"] for row in progress.history) * 2**20),
            "final_loss": last["loss"],
            "embedding_std": last["embedding_std"],
            "effective_rank": last["effective_rank"],
            "resumed": progress.resumed,
        },
        "data": {"benchmark": spec.benchmark, "digest": trainer.data.digest},
        "provenance": provenance(trainer.runtime.describe()),
    }


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second one acts at once.

    One request can arrive twice: a process group gets it, and a container engine of that group passes it on as well.
    So only a signal that comes later than that is a second one.
    """
    received: list[int] = []
    first = 0.0
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def note(number: int, _frame: object) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
