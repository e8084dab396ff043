"""Pretraining: the loop, its records and its checkpoints.

Everything random comes from streams indexed by epoch or step (`wmse.streams`), so the position in the run is one
number, the step, and a resumed run computes what a straight run computes, bit for bit on the CPU.
"""

from __future__ import annotations

import csv
import io
import math
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
from torch.nn.utils import get_total_norm

from wmse.checkpoint import (
    CHECKPOINTS,
    DEFAULT_POLICY,
    ENCODER,
    CheckpointPolicy,
    load_checkpoint,
    save_checkpoint,
    save_encoder,
)
from wmse.config import RunSpec, paper_differences
from wmse.datasets import SOURCES, Prepared
from wmse.errors import CheckpointError, ConfigError, TrainingError
from wmse.events import EventFile
from wmse.features import extract
from wmse.files import digests, remove_temporaries, write_sealed_json, write_text
from wmse.images import open_images
from wmse.locks import exclusive_lock
from wmse.methods import Method, StepOutput, build_method
from wmse.optim import build_optimizer, learning_rate
from wmse.probes import embedding_spread, knn_accuracy
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runtime import Runtime, out_of_memory
from wmse.streams import stream, stream_seed
from wmse.whitening import SingularCovarianceError, check_factorisations

HISTORY = "history.csv"
PRETRAINED = "pretrain.json"
DIVERGED = (
    "Usual causes: a learning rate (lr) that is too high, a warm-up that is too short, or bf16 (avoided by "
    "`precision: fp32` under `parameters`). What was saved before this step is kept"
)
MEMORY_REMEDY = (
    "Its checkpoints are kept: the same command goes on from them where there is more memory. `precision: bf16` or a "
    "smaller batch_size under `parameters` need less, but make another run; and a smaller batch, which must be a "
    "multiple of w_size, changes the paper's method: its batch norm, its recipe, SimCLR's negatives"
)
SAME_REQUEST = 2.0  # seconds within which a repeated signal is the same request to stop
COLLAPSED_STEPS = 100  # with equal embeddings, after which a run is over; a last layer that starts at zero needs a few
NEARLY_COLLAPSED = 0.05  # spread of the embeddings that deserves a warning; the runs of the recipes keep above 0.7
LOG_EVERY = 20  # steps between updates of the progress bar: reading the loss makes the host wait for the device


class Stopped(Exception):
    """The run was interrupted after writing a checkpoint."""

    def __init__(self, step: int, signal_number: int | None = None) -> None:
        self.step, self.signal = step, signal_number
        by = f" by {signal.Signals(signal_number).name}" if signal_number else ""
        super().__init__(f"stopped{by} after step {step}; the same command continues from there")


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
    unevaluated: dict[str, Any] | None = None  # the record of an epoch that has ended, until its evaluation has
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run of one method on one benchmark.

    Args:
        out: the run's directory.
        stop: asked after every step and between the parts of an evaluation; True writes a checkpoint and raises
            `Stopped`.
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
        checkpoints: CheckpointPolicy = DEFAULT_POLICY,
        stop: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = print,
        progress_bar: bool | None = None,
    ) -> None:
        self.spec, self.data, self.out, self.runtime = spec, data, out, runtime
        self.shows_bar = sys.stderr.isatty() if progress_bar is None else progress_bar
        self.checkpoints, self.stop, self.log = checkpoints, stop, log
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
        self.guard = StepGuard(spec, self.steps_per_epoch, self.method)
        self.saved_at = time.monotonic()

    def run(self) -> list[dict[str, Any]]:
        """Train to the end (from the checkpoint, if there is one); returns the history."""
        self._restore()
        progress, self.saved_at = self.progress, time.monotonic()
        # Events after the checkpoint belong to steps that are now repeated.
        board = EventFile(self.out / "tensorboard", progress.step or None, self._say)
        with self._bar() as bar:
            if progress.unevaluated:
                self._finish_epoch(board)
            while progress.step < self.total_steps:
                for output in self._epoch_steps(bar):
                    if progress.step % self.steps_per_epoch == 0:
                        self._end_epoch(output)
                        self._finish_epoch(board)
                    self._stop_if_asked()
                    if self._checkpoint_due():
                        self.save()
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
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.guard.check(step, output)
        self.optimizer.step()
        self.method.after_step(step // self.steps_per_epoch / spec.epochs)
        self.progress.step += 1
        return output

    # --- records ------------------------------------------------------------------------------------------------------

    def _end_epoch(self, output: StepOutput) -> None:
        """Measure the epoch that has ended with this step."""
        self.guard.flush()
        spec, progress = self.spec, self.progress
        loss = self.loss_sum.item() / self.steps_per_epoch  # waits for the device, so that the time is right
        seconds = self.clock.seconds()
        views = self.steps_per_epoch * spec.batch_size * spec.d
        spread, rank = embedding_spread(output.embeddings[0])
        progress.seconds += seconds
        progress.loss_sum = progress.epoch_seconds = 0.0
        record = EpochRecord(
            epoch=progress.step // self.steps_per_epoch,
            step=progress.step,
            views=progress.step * spec.batch_size * spec.d,
            seconds=round(progress.seconds, 3),
            loss=loss,
            lr=self.optimizer.param_groups[0]["lr"],
            views_per_second=round(views / seconds, 1),
            embedding_std=spread.item(),
            effective_rank=rank.item(),
            knn5_top1=None,
            peak_memory_mb=0.0,
        )
        progress.unevaluated = asdict(record)

    def _finish_epoch(self, board: EventFile) -> None:
        """Evaluate if it is due, and add a line to every record; a stop in the evaluation leaves all of this to do."""
        spec, progress = self.spec, self.progress
        record = EpochRecord(**progress.unevaluated)
        if evaluation_due(spec, record.epoch):
            record.knn5_top1 = self.knn()
        record.peak_memory_mb = round(peak_memory_bytes(self.runtime.device.type) / 2**20, 1)
        progress.unevaluated = None
        progress.history.append(asdict(record))
        write_text(self.out / HISTORY, history_csv(progress.history))
        scalars = {name: value for name, value in asdict(record).items() if value is not None}
        board.add_scalars({name: scalars[name] for name in scalars if name not in ("epoch", "step")}, record.step)
        knn = f", 5-nn {record.knn5_top1:.2f} %" if record.knn5_top1 is not None else ""
        self._say(
            f"epoch {record.epoch}/{spec.epochs}, step {record.step}, loss {record.loss:.4f}, lr {record.lr:.2e}, "
            f"{record.views_per_second:.0f} views/s, spread {record.embedding_std:.3f}, "
            f"rank {record.effective_rank:.1f}{knn}"
        )
        if record.embedding_std < NEARLY_COLLAPSED and not self.method.collapse_expected:
            self._say(
                f"warning: {spec.run}: the embeddings have nearly collapsed, with a spread of "
                f"{record.embedding_std:.1e} (1 is isotropic, 0 a single point). If it does not recover, lower lr or "
                "lengthen the warm-up"
            )

    def _say(self, line: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():  # a line between two states of the bar
            self.log(line)

    def knn(self) -> float:
        """5-nn accuracy of the encoder as it is now, in percent."""
        (train, train_labels), (test, test_labels) = self.probe
        encoder = self.method.encoder
        features = [extract(encoder, images, self.runtime, self._stop_if_asked) for images in (train, test)]
        return knn_accuracy(
            features[0], train_labels, features[1], test_labels, self.spec.knn_k, between=self._stop_if_asked
        )

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

    def _stop_if_asked(self) -> None:
        if self.stop():
            self.save()
            raise Stopped(self.progress.step)

    def _checkpoint_due(self) -> bool:
        epoch, within = divmod(self.progress.step, self.steps_per_epoch)
        policy = self.checkpoints
        by_epoch = policy.epochs is not None and not within and epoch % policy.epochs == 0
        return by_epoch or time.monotonic() - self.saved_at > policy.seconds

    def save(self) -> None:
        """Write the whole state; never one whose last step was not checked, or in which a number is not finite."""
        self.guard.check_state(self.progress.step)
        if self.progress.step % self.steps_per_epoch:  # between epochs both are 0
            self.progress.loss_sum, self.progress.epoch_seconds = self.loss_sum.item(), self.clock.seconds()
        state = {
            "precision": self.runtime.precision,
            "data": self.data.digest,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        save_checkpoint(self.out / CHECKPOINTS, self.spec, self.progress.step, state, self.checkpoints.keep)
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        folder = self.out / CHECKPOINTS
        state = load_checkpoint(folder, self.spec, self.log)
        if state is None:
            return
        for key, now, advice in (
            ("precision", self.runtime.precision, "set `precision` to that value under `parameters`, or remove them"),
            ("data", self.data.digest, "prepare the same data again, or remove them"),
        ):
            if state[key] != now:
                raise CheckpointError(f"{folder}: were made with {key} {state[key]}, this is {now}: {advice}")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        if self.progress.step < self.total_steps or self.progress.unevaluated:
            self.progress.resumed += 1
            self.log(f"continuing {self.spec.run} at step {self.progress.step} of {self.total_steps}")


class StepGuard:
    """Stops a run whose whitening failed, whose loss or gradient is not finite, or whose embeddings stay all equal.

    On the CPU a step is judged at once, before it changes a parameter. On a GPU, where that would make the host wait,
    the figures are copied to the host in the background and read one step later, when they have long arrived; a
    checkpoint is written only after they were read.
    """

    def __init__(self, spec: RunSpec, steps_per_epoch: int, method: Method) -> None:
        self.spec, self.steps_per_epoch, self.method = spec, steps_per_epoch, method
        self.parameters = list(method.parameters())  # going through the modules takes as long as the norm
        self.deferred = self.parameters[0].is_cuda
        self.pending: tuple[int, Tensor, Tensor | None, torch.cuda.Event] | None = None
        self.equal_steps = 0  # without a difference between embeddings, until now

    def check(self, step: int, output: StepOutput) -> None:
        """Judge a step, or on a GPU the one before it; to be called between its backward pass and its update."""
        figures, info = self._figures(output), output.factorisations
        if not self.deferred:
            self._judge(step, figures, info)
            return
        self.flush()
        host_info = None if info is None else info.to("cpu", non_blocking=True)
        host_figures = figures.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.pending = (step, host_figures, host_info, event)

    def flush(self) -> None:
        """Judge the step that is still pending."""
        if self.pending:
            step, figures, info, event = self.pending
            self.pending = None
            event.synchronize()
            self._judge(step, figures, info)

    def check_state(self, step: int) -> None:
        """Raise TrainingError if the pending step is bad, or a parameter or buffer is not finite after `step` steps."""
        self.flush()
        values = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        if not get_total_norm(values).isfinite():
            raise TrainingError(f"{self._where(step - 1)}: the parameters are not finite after it. {DIVERGED}")

    def _figures(self, output: StepOutput) -> Tensor:
        """On the device: the loss, the norm of the whole gradient, the largest range of an embedding's dimension."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        span = output.embeddings.amax(dim=1) - output.embeddings.amin(dim=1)
        figures = output.loss.detach(), get_total_norm(gradients), span.amax()
        return torch.stack([figure.double() for figure in figures])

    def _judge(self, step: int, figures: Tensor, info: Tensor | None) -> None:
        try:
            problem = self._problem(*figures.tolist(), info)
        except SingularCovarianceError as error:
            problem = str(error)
        if problem:
            raise TrainingError(f"{self._where(step)}: {problem}")

    def _problem(self, loss: float, gradient: float, span: float, info: Tensor | None) -> str | None:
        if not math.isfinite(span):
            return f"the embeddings are not finite. {DIVERGED}"
        if info is not None:
            check_factorisations(info, self.spec.w_size, self.spec.embedding)
        if not math.isfinite(loss):
            return f"the loss is not finite. {DIVERGED}"
        if not math.isfinite(gradient):
            return f"the gradient is not finite, with a loss of {loss:.4g}. {DIVERGED}"
        self.equal_steps = self.equal_steps + 1 if span == 0 else 0
        if self.equal_steps >= COLLAPSED_STEPS and not self.method.collapse_expected:
            return (
                f"for {COLLAPSED_STEPS} steps the embeddings of all images have been equal to the last bit: the "
                "network has collapsed for good. Lower lr, or lengthen the warm-up"
            )
        return None

    def _where(self, step: int) -> str:
        return f"{self.spec.run}: step {step} (epoch {step // self.steps_per_epoch + 1})"


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
    checkpoints: CheckpointPolicy = DEFAULT_POLICY,
    log: Callable[[str], None] = print,
    progress_bar: bool | None = None,
) -> None:
    """Train a run in its directory `out`: encoder.safetensors, history.csv, pretrain.json, TensorBoard events.

    SIGTERM, SIGINT and SIGUSR1 end it after the current step, or part of an evaluation, with a checkpoint (`Stopped`).
    """
    trainer: Trainer | None = None

    def where() -> str:
        return f"{spec.run}: step {trainer.progress.step}" if trainer else f"{spec.run}: before the first step"

    with (
        exclusive_lock(out / ".lock", f"wmse pretrain {spec.run}", TrainingError),
        stop_on_signals() as received,
        out_of_memory(where, runtime.device, MEMORY_REMEDY),
    ):
        for target in (out / CHECKPOINTS / "step-*", out / HISTORY, out / ENCODER, out / PRETRAINED):
            remove_temporaries(target)
        trainer = Trainer(
            spec,
            data,
            out,
            runtime,
            checkpoints=checkpoints,
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
