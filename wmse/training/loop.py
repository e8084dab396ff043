"""The pretraining of a run: epochs of steps, each followed by its record and, where one is due, an evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmse.datasets import SOURCES
from wmse.encoder import Preprocessing, save_encoder
from wmse.errors import CheckpointError, ConfigError, TrainingError
from wmse.features import extract, open_probe
from wmse.files import digests, remove_temporaries, write_text
from wmse.images import ArrayImages, FileImages, open_images
from wmse.locks import exclusive_lock, patience
from wmse.methods import StepOutput, build_method
from wmse.probes import embedding_spread, knn_predict
from wmse.progress import Lines, beside_bars, progress_bar
from wmse.provenance import peak_memory_bytes, provenance
from wmse.runs.folder import ENCODER, HISTORY
from wmse.runs.job import Job
from wmse.runs.record import is_trained, write_record
from wmse.runtime import compiler_errors, out_of_memory
from wmse.streams import stream, stream_seed
from wmse.training.checkpoint import load_checkpoint, save_checkpoint
from wmse.training.events import EventFile
from wmse.training.guard import StepGuard
from wmse.training.history import EpochRecord, EpochSoFar, Progress, history_csv
from wmse.training.optim import build_optimizer, learning_rate
from wmse.training.signals import Stopped, stop_on_signals
from wmse.views.augmentation import build_augmentation
from wmse.views.params import on_device

if TYPE_CHECKING:
    from tqdm import tqdm

TRAINING_MEMORY = (
    "Its checkpoints are kept: the same command goes on from them where there is more memory. `precision: bf16` or a "
    "smaller batch_size under `parameters` need less, but make another run; and a smaller batch, which must be a "
    "multiple of w_size, changes the paper's method: its batch norm, its recipe, SimCLR's negatives"
)
NEARLY_COLLAPSED = 0.05  # A smaller spread of the embeddings deserves a warning; the recipes' runs keep above 0.7.
LOG_EVERY = 20  # Steps between updates of the progress bar: reading the loss makes the host wait for a GPU.


def pretrain(job: Job) -> None:
    """Train a run in its folder: encoder.safetensors, history.csv, pretrain.json, TensorBoard events.

    A run that is trained already, here or where it was imported from, stays as it is.
    SIGTERM, SIGINT and SIGUSR1 end it after the current step, or part of an evaluation, with a checkpoint (`Stopped`).
    """
    spec, folder, world = job.spec, job.folder, job.runtime.world
    trainer: Trainer | None = None

    def where() -> str:
        return f"{spec.run}: step {trainer.progress.step}" if trainer else f"{spec.run}: before the first step"

    def begin() -> bool:
        lock = exclusive_lock(folder.lock, f"wmse pretrain {spec.run}", TrainingError, patience(), job.log)
        held.enter_context(lock)
        for target in (folder.checkpoints / "*", folder.history, folder.encoder, folder.pretrained):
            remove_temporaries(target)
        return is_trained(job)

    with contextlib.ExitStack() as held:
        if world.first(begin):
            job.log(f"{spec.run}: is trained already; `wmse evaluate` measures its encoder")
            return
        received = held.enter_context(stop_on_signals())
        held.enter_context(compiler_errors(where))
        held.enter_context(out_of_memory(where, job.runtime.device, TRAINING_MEMORY))
        trainer = Trainer(job, stop=lambda: received[0] if received else None)
        steps = spec.epochs * trainer.steps_per_epoch
        job.log(f"{spec.run}: {steps} steps of {spec.d} x {spec.batch_size} views on {job.runtime.describe()}")
        with contextlib.closing(trainer):
            trainer.run()
        job.log(f"{spec.run}: writing {folder.encoder}")
        world.first(trainer.write_results)


class Trainer:
    """One run of one method on one benchmark.

    Args:
        stop: asked after every step and epoch and between the parts of an evaluation; the number of a signal writes a
            checkpoint and raises `Stopped`.
    """

    def __init__(self, job: Job, stop: Callable[[], int | None] = lambda: None) -> None:
        self.job, self.stop, self.world = job, stop, job.runtime.world
        spec, device, source = job.spec, job.runtime.device, SOURCES[job.spec.benchmark]
        self.images = open_images(job.data["pretrain"], source, spec, device, replayed=job.runtime.compile)
        self.steps_per_epoch = len(self.images) // spec.batch_size  # the last partial batch is dropped
        if not self.steps_per_epoch:
            raise ConfigError(
                f"{spec.cell}: batch_size ({spec.batch_size}) exceeds the {len(self.images)} images: lower it under "
                "`parameters`"
            )
        self.method = job.runtime.place(build_method(spec, stream_seed(spec.seed, "weights")))
        self.loss_over = spec.loss_over(self.world.size)
        if self.loss_over == "batch":
            self.method.gather = self.world.gather
        self.augmentation = build_augmentation(spec)
        self.optimizer = build_optimizer(spec, self.method)
        self.guard = StepGuard(spec, self.steps_per_epoch, self.method, self.world)
        self.probe = open_probe(job)
        job.runtime.compile_forward(self.method)
        self.network = self.world.parallel(self.method)
        self.progress = Progress()

    def run(self) -> list[EpochRecord]:
        """Train to the end (from the checkpoint, if there is one); returns the history."""
        self._restore()
        self.saved_at = time.monotonic()
        board = None
        if self.world.rank == 0:
            # Events after the checkpoint belong to steps that are now repeated.
            board = EventFile(self.job.folder.tensorboard, self.progress.step or None, self._say)
        batches = self._batches(self.progress.step)
        self.images.read_ahead(self._shares(self.progress.step))
        try:
            with self._bar() as bar:
                for epoch in range(len(self.progress.history), self.job.spec.epochs):
                    self._train_epoch(epoch, batches, bar)
                    self._finish_epoch(board)
                    self._pause()
        except Stopped:
            self.save()
            raise
        self.save()
        return self.progress.history

    def write_results(self) -> None:
        """What a finished run leaves: its history, its encoder, and the record that vouches for both."""
        job = self.job
        write_text(job.folder.history, history_csv(self.progress.history))
        encoder, recipe = self.method.encoder, self.images.recipe
        encoder.preprocessing = Preprocessing.of(job.spec, recipe.mean, recipe.std)
        save_encoder(job.folder.encoder, encoder, job.spec, job.data.digest)
        share = {"images_per_process": job.spec.batch_size // self.world.size}
        content = {
            "pretrain": {**self.progress.summary(), **share},
            "provenance": provenance(job.runtime.describe()),
            "files": digests(job.folder.path, ENCODER, HISTORY),
        }
        write_record(job.folder.pretrained, job, content)

    def _batches(self, first: int) -> Iterator[Tensor]:
        """The images (N,) of every step from the step `first` to the end of the training."""
        spec, steps = self.job.spec, self.steps_per_epoch
        for epoch in range(first // steps, spec.epochs):
            order = torch.randperm(len(self.images), generator=stream(spec.seed, "order", epoch))
            yield from order[: steps * spec.batch_size].split(spec.batch_size)[max(first - epoch * steps, 0) :]

    def _shares(self, first: int) -> Iterator[Tensor]:
        """The images of `_batches` that are this process's."""
        for step, index in enumerate(self._batches(first), first):
            yield index[self._share(len(index), step)[0]]

    def close(self) -> None:
        """End the threads that decode images."""
        for images in (self.images, *(images for images, _ in self.probe)):
            images.close()

    def _train_epoch(self, epoch: int, batches: Iterator[Tensor], bar: tqdm | Lines) -> None:
        """The steps of an epoch that are still to be taken."""
        progress, steps = self.progress, self.steps_per_epoch
        started = time.perf_counter() - progress.epoch.seconds
        for i in range(progress.step - epoch * steps, steps):
            output = self.step(next(batches))
            progress.epoch.loss_sum += output.loss.detach().double()
            if i + 1 == steps:
                self._measure(output)
            progress.epoch.seconds = time.perf_counter() - started
            self._show(bar, epoch, i)
            self._pause()

    def step(self, index: Tensor) -> StepOutput:
        """One optimiser step on the images `index` (N,).

        Of several processes, each has the loss and the embeddings of its share, or of all if the method gathers them.
        """
        spec, runtime, step = self.job.spec, self.job.runtime, self.progress.step
        runtime.begin_step()
        rows, slices = self._share(len(index), step)
        views = self.world.together(lambda: self._views(index, rows))
        self._check_views(len(views), "views of an image came from the data")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, self.steps_per_epoch)
        slices = None if slices is None else on_device(slices, runtime.device)
        self.network.train()
        with runtime.autocast():
            output = self.network([runtime.batch(view) for view in views], slices)
        self._check_views(len(output.embeddings), "of them had embeddings for the loss")
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.guard.check(step, output)
        self.optimizer.step()
        self.method.after_step(step // self.steps_per_epoch / spec.epochs)
        self.progress.step += 1
        return output

    def _check_views(self, found: int, where: str) -> None:
        """A loss for d views that is given fewer is another loss, and nothing else would show it."""
        if found != self.job.spec.d:
            run, step = self.job.spec.run, self.progress.step
            raise TrainingError(f"{run}: step {step}: the run has d = {self.job.spec.d} views, but {found} {where}")

    def _views(self, index: Tensor, rows: slice | Tensor) -> list[Tensor]:
        """The views of the images `index` (N,) that are at the positions `rows`."""
        spec, step = self.job.spec, self.progress.step
        views = self.images.views(index, spec.d, spec.seed, step, rows)
        if self.augmentation is None:
            return views
        generators = [stream(spec.seed, "augmentation", step, view) for view in range(spec.d)]
        drawn = [self.augmentation.draw(len(index), spec.view_size, generator)[rows] for generator in generators]
        return [self.augmentation(view, on_device(x, view.device)) for view, x in zip(views, drawn, strict=True)]

    def _share(self, n: int, step: int) -> tuple[slice | Tensor, Tensor | None]:
        """The positions of this process's images in a step's batch of n, and the slices of the embeddings it will have.

        Where the loss is a mean over sub-batches, a process takes the images of some of them, side by side in the order
        of the slices, and needs no others.
        """
        spec, part = self.job.spec, self.world.part(n)
        slices = self.method.draw(n, stream(spec.seed, "slices", step))
        if self.world.size == 1 or self.loss_over != "sub-batches":
            return part, slices
        rows = slices.flatten()[part]
        return rows, torch.arange(len(rows)).view(1, -1, spec.w_size)

    # --- epochs -------------------------------------------------------------------------------------------------------

    def _measure(self, output: StepOutput) -> None:
        """How far the embeddings of an epoch's last step are from collapse."""
        self.guard.flush()  # so that they are finite
        embeddings = output.embeddings[:1] if self.loss_over == "batch" else self.world.gather(output.embeddings[:1])
        spread, rank = embedding_spread(embeddings[0])
        self.progress.epoch.embedding_std = spread.item()
        self.progress.epoch.effective_rank = rank.item()

    def _finish_epoch(self, board: EventFile | None) -> None:
        """Evaluate if it is due, and add a line to every record; a stop in the evaluation leaves all of this to do."""
        spec, progress, done = self.job.spec, self.progress, self.progress.epoch
        epoch = len(progress.history) + 1
        views = self.steps_per_epoch * spec.batch_size * spec.d
        before = progress.history[-1].seconds if progress.history else 0.0
        record = EpochRecord(
            epoch=epoch,
            step=progress.step,
            views=epoch * views,
            seconds=round(before + done.seconds, 3),
            loss=float(self.world.mean(done.loss_sum)) / self.steps_per_epoch,
            lr=learning_rate(spec, progress.step - 1, self.steps_per_epoch),
            views_per_second=round(views / done.seconds, 1),
            embedding_std=done.embedding_std,
            effective_rank=done.effective_rank,
            knn5_top1=self.knn() if self.probe and spec.evaluation_due(epoch) else None,
            peak_memory_mb=round(peak_memory_bytes(self.job.runtime.device.type) / 2**20, 1),
        )
        progress.history.append(record)
        progress.epoch = EpochSoFar()
        self.world.first(lambda: write_text(self.job.folder.history, history_csv(progress.history)))
        if board:
            scalars = {key: value for key, value in asdict(record).items() if key not in ("epoch", "step")}
            board.add_scalars({key: value for key, value in scalars.items() if value is not None}, record.step)
        self._say(record.describe(spec.epochs))
        if record.embedding_std < NEARLY_COLLAPSED and not self.method.collapse_expected:
            self._say(
                f"warning: {spec.run}: the embeddings have nearly collapsed, with a spread of "
                f"{record.embedding_std:.1e} (1 is isotropic, 0 a single point). If it does not recover, lower lr or "
                "lengthen the warm-up"
            )

    def knn(self) -> float:
        """5-nn accuracy of the encoder as it is now, in percent."""
        (train, train_labels), (test, test_labels) = self.probe
        world, spec, ask = self.world, self.job.spec, self._stop_if_asked

        def features(images: ArrayImages | FileImages) -> Tensor:
            part = world.part(len(images))
            return world.together(lambda: extract(self.method.encoder, images, self.job.runtime, ask, part))

        reference, queries = world.whole(features(train), len(train)), features(test)
        predicted = world.together(lambda: knn_predict(reference, train_labels, queries, spec.knn_k, between=ask))
        correct = world.whole(predicted, len(test)) == test_labels
        return 100 * correct.double().mean().item()

    # --- progress bar -------------------------------------------------------------------------------------------------

    def _bar(self) -> tqdm | Lines:
        total = self.job.spec.epochs * self.steps_per_epoch
        return progress_bar(total, "step", start=self.progress.step, shown=self.job.progress_bar)

    def _show(self, bar: tqdm | Lines, epoch: int, i: int) -> None:
        every = 1 if self.job.runtime.device.type == "cpu" else LOG_EVERY
        if bar.disable or (i % every and i + 1 < self.steps_per_epoch):
            return
        spec, so_far = self.job.spec, self.progress.epoch
        rate = (i + 1) * spec.batch_size * spec.d / so_far.seconds
        bar.set_description(f"{spec.cell} epoch {epoch + 1}/{spec.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {float(so_far.loss_sum) / (i + 1):.4f}, {rate:.0f} views/s", refresh=False)
        bar.update(self.progress.step - bar.n)

    def _say(self, line: str) -> None:
        with beside_bars():
            self.job.log(line)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Between two steps or epochs: stop if asked to, or write a checkpoint if it is time."""
        policy = self.job.checkpoints
        finished = len(self.progress.history)
        between_epochs = self.progress.step == finished * self.steps_per_epoch
        by_epoch = policy.epochs is not None and between_epochs and finished % policy.epochs == 0
        due = by_epoch or time.monotonic() - self.saved_at > policy.seconds
        number, due = self.world.most(self.stop() or 0, due)
        if number:
            raise Stopped(self.progress.step, number)
        if due:
            self.save()

    def _stop_if_asked(self) -> None:
        if number := self.stop():
            raise Stopped(self.progress.step, number)

    def save(self) -> None:
        """Write the whole state; never one whose last step was not checked, or in which a number is not finite."""
        self.guard.check_state(self.progress.step)
        # A plain number fits any device, and the mean over the processes any number of them.
        self.progress.epoch.loss_sum = float(self.world.mean(self.progress.epoch.loss_sum))
        self.world.first(self._write_checkpoint)
        self.saved_at = time.monotonic()

    def _write_checkpoint(self) -> None:
        state = {
            "precision": self.job.runtime.precision,
            "data": self.job.data.digest,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        job = self.job
        save_checkpoint(job.folder.checkpoints, job.spec, self.progress.step, state, job.checkpoints.keep)

    def _restore(self) -> None:
        job, folder = self.job, self.job.folder.checkpoints
        state = self.world.first(lambda: load_checkpoint(folder, job.spec, job.log))
        if state is None:
            return
        precision = "set `precision` to that value under `parameters`, or remove them"
        for key, now, advice in (
            ("precision", job.runtime.precision, precision),
            ("data", job.data.digest, "prepare the same data again, or remove them"),
        ):
            if state[key] != now:
                raise CheckpointError(f"{folder}: were made with {key} {state[key]}, this is {now}: {advice}")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.restored(state["progress"])
        if len(self.progress.history) < job.spec.epochs:
            self.progress.resumed += 1
            steps = job.spec.epochs * self.steps_per_epoch
            job.log(f"continuing {job.spec.run} at step {self.progress.step} of {steps}")
