"""Faults inside a training: numbers that are not finite, stops, and too little memory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import resource
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wmse.training.guard
from builders.data import make_images
from builders.forked import Reference, start, wait
from builders.runs import CPU, EVERY_STEP, make_job, make_trainer, tiny_spec
from wmse.datasets import ArrayDataset
from wmse.errors import OutOfMemoryError, TrainingError
from wmse.runs.evaluate import evaluate
from wmse.runs.folder import CHECKPOINTS
from wmse.runtime import Runtime, out_of_memory
from wmse.training import CheckpointPolicy, Stopped, Trainer, pretrain
from wmse.training.checkpoint import list_checkpoints, load_checkpoint


def poison(trainer: Trainer, step: int, value: float) -> None:
    """One entry of one gradient becomes `value` in that step."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        if trainer.progress.step == step:
            gradient = gradient.clone()
            gradient.view(-1)[5] = value
        return gradient

    trainer.method.encoder.layer2[0].bn1.weight.register_hook(hook)


@pytest.mark.parametrize(
    ("step", "value", "deferred"),
    [(0, torch.nan, True), (4, torch.inf, False), (5, -torch.inf, True), (8, torch.nan, False), (8, torch.nan, True)],
)
def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(
    step: int,
    value: float,
    deferred: bool,
    tmp_path: Path,
    reference: Reference,
    counts: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once as on a CPU, or `deferred` as on a GPU, where the bad update has been made when the verdict comes."""
    trainer = make_trainer(
        reference.spec, reference.data, tmp_path / "run", checkpoints=EVERY_STEP if step < 5 else CheckpointPolicy()
    )
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    trainer.guard.deferred = deferred
    poison(trainer, step, value)
    epoch = step // 3 + 1
    with pytest.raises(TrainingError, match=rf"seed0-\w+: step {step} \(epoch {epoch}\): the gradient is not finite"):
        trainer.run()
    counts["faults"] += 1
    assert trainer.progress.step <= step + deferred
    for _, path in list_checkpoints(tmp_path / "run" / CHECKPOINTS):
        state = torch.load(path, weights_only=True)
        assert state["progress"]["step"] <= step
        assert all(value.isfinite().all() for value in state["method"].values())
    pretrain(make_job(reference.spec, reference.data, tmp_path / "run"))
    reference.assert_same(tmp_path / "run")


def test_parameters_that_are_not_finite_are_not_saved(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_spec(), data, tmp_path)
    trainer.method.after_step = lambda progress: trainer.method.head[0].bias.data.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"step 0 \(epoch 1\): the parameters are not finite"):
        trainer.run()
    assert not list_checkpoints(tmp_path / CHECKPOINTS)


def test_embeddings_that_are_not_finite_are_no_singular_covariance(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_spec(), data, tmp_path)
    torch.nn.init.constant_(trainer.method.encoder.conv1.weight, torch.nan)
    with pytest.raises(TrainingError, match=r"step 0 \(epoch 1\): the embeddings are not finite"):
        trainer.run()


@pytest.mark.parametrize("label", ["wmse-2", "simclr", "byol"])
def test_bf16_kernels_that_give_nan_on_feature_maps_of_one_pixel_change_no_parameter(
    label: str, data: ArrayDataset, tmp_path: Path
) -> None:
    """oneDNN's, on CPUs where it does; elsewhere the run must be healthy."""
    runtime = Runtime(torch.device("cpu"), "bf16")
    trainer = Trainer(make_job(tiny_spec(label, stem="imagenet"), data, tmp_path, runtime))
    try:
        trainer.run()
    except TrainingError as error:
        assert re.search(r"the gradient is not finite.*precision: fp32", str(error))  # noqa: PT017 (may not raise)
    assert all(p.isfinite().all() for p in trainer.method.parameters())


@pytest.mark.parametrize("label", ["simclr", "byol"])
def test_a_network_that_gives_one_embedding_for_all_images_is_stopped(
    label: str, data: ArrayDataset, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wmse.training.guard, "COLLAPSED_STEPS", 5)
    lines: list[str] = []
    trainer = make_trainer(tiny_spec(label), data, tmp_path, lines)
    torch.nn.init.zeros_(trainer.method.encoder.conv1.weight)
    with pytest.raises(TrainingError, match=r"step 4 .*equal to the last bit.*Lower lr"):
        trainer.run()
    assert any("warning" in line and "nearly collapsed" in line for line in lines)
    counts["faults"] += 1


def test_a_head_that_starts_at_zero_and_an_ablation_that_shows_collapse_run_to_the_end(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wmse.training.guard, "COLLAPSED_STEPS", 5)
    trained = [make_trainer(tiny_spec(label), data, tmp_path / label) for label in ("byol", "wmse-2@no-whitening")]
    for trainer in trained:
        torch.nn.init.zeros_(trainer.method.head[-1].weight)
    spread = [trainer.run()[-1].embedding_std for trainer in trained]
    assert spread[0] > 0.1
    assert spread[1] == 0


def test_stops_at_many_moments_of_one_run_change_no_bit(
    tmp_path: Path, reference: Reference, counts: Counter[str]
) -> None:
    """After steps and between the parts of the evaluations, of which the epochs 2 and 3 have one each."""
    run, steps, sessions = tmp_path / "run", 0, 0
    chance = random.Random(0)
    finished = False
    while not finished:
        trainer = make_trainer(reference.spec, reference.data, run, checkpoints=CheckpointPolicy())
        asked = iter([None] * chance.randint(0, 4) + [signal.SIGTERM])
        trainer.stop = lambda asked=asked: next(asked)
        before = list_checkpoints(run / CHECKPOINTS)
        try:
            trainer.run()
            finished = True
        except Stopped:
            counts["faults"] += 1
            sessions += 1
        steps += trainer.progress.step - (before[0][0] if before else 0)
    assert steps == 9  # none is taken twice
    assert sessions >= 5
    pretrain(make_job(reference.spec, reference.data, run))
    reference.assert_same(run)


def test_a_stop_within_the_evaluation_leaves_the_whole_evaluation_to_do(tmp_path: Path, reference: Reference) -> None:
    for part in range(3):  # features of the training images, of the test images, neighbours
        run = tmp_path / str(part)
        trainer = make_trainer(reference.spec, reference.data, run, checkpoints=CheckpointPolicy())
        questions = iter(
            [None] * (6 + 1 + part) + [signal.SIGTERM]
        )  # after 6 steps and epoch 1, which has no evaluation
        trainer.stop = lambda questions=questions: next(questions)
        with pytest.raises(Stopped):
            trainer.run()
        ((step, _),) = list_checkpoints(run / CHECKPOINTS)
        state = load_checkpoint(run / CHECKPOINTS, reference.spec)
        assert (step, len(state["progress"]["history"])) == (6, 1)
        assert state["progress"]["epoch"]["effective_rank"] > 1
        pretrain(make_job(reference.spec, reference.data, run))
        reference.assert_same(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_each_signal_stops_with_a_checkpoint(number: int, tmp_path: Path, reference: Reference) -> None:
    def log(line: str) -> None:
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} after step 3"):
        pretrain(make_job(reference.spec, reference.data, tmp_path / "run", log=log))
    pretrain(make_job(reference.spec, reference.data, tmp_path / "run"))
    reference.assert_same(tmp_path / "run")


HELD: list[torch.Tensor] = []  # what a child has taken


def limit_memory(extra: int) -> None:
    """Leave this process `extra` bytes beyond what it has, and nothing of what earlier tests have freed in its heap."""
    data = 1024 * int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))
    with contextlib.suppress(RuntimeError):
        while True:
            HELD.append(torch.empty(2**20, dtype=torch.uint8))
    resource.setrlimit(resource.RLIMIT_DATA, (data + extra, resource.RLIM_INFINITY))


def test_too_little_memory_is_one_message_and_costs_no_checkpoint(
    tmp_path: Path, long: bool, counts: Counter[str]
) -> None:
    """The allocator refuses in the middle of a training, at allocations that depend on how much it still gives."""
    images = make_images(1300, 1)
    data = ArrayDataset(pretrain=images, train=images, test=make_images(60, 2))
    spec = tiny_spec(epochs=1, lr_drops=[], batch_size=640, view_size=16, eval_resize=16)
    reference = Reference(spec, tmp_path / "reference", data)
    refused = 0
    for extra in range(0, 33 if long else 1, 4):
        run, log = tmp_path / f"run{extra}", tmp_path / "log"

        def work(run: Path = run, extra: int = extra) -> None:
            step = Trainer.step

            def limited(trainer: Trainer, *index: torch.Tensor) -> object:
                if trainer.progress.step == 1:
                    limit_memory(extra * 2**20)
                return step(trainer, *index)

            Trainer.step = limited
            reference.job(run, EVERY_STEP)

        status = wait(start(work, log))
        lines = log.read_text().splitlines()
        if status:
            assert status == 1, lines
            assert len(lines) == 1
            assert re.search(rf"{spec.run}.*out of memory on cpu, after a peak of [\d,]+ MiB", lines[0])
            refused += 1
            counts["faults"] += 1
        assert reference.assert_whole(run) >= 1
        assert wait(start(lambda run=run: reference.job(run), log)) == 0, log.read_text()
        reference.assert_same(run)
    assert refused >= (3 if long else 1)


def test_too_little_memory_for_the_evaluation_is_one_message(tmp_path: Path, data: ArrayDataset) -> None:
    spec, log = tiny_spec("random", view_size=32, eval_resize=0, width=16), tmp_path / "log"

    def work() -> None:
        limit_memory(0)
        evaluate(make_job(spec, data, tmp_path))

    assert wait(start(work, log)) == 1, log.read_text()
    assert re.search(rf"{spec.run}: evaluation: out of memory on cpu", log.read_text())
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_every_kind_of_failed_allocation_has_the_same_message(error: Exception) -> None:
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^step 3: out of memory on cpu, after a peak of [\d,]+ MiB \(.*\)\. Do$"
        ),
        out_of_memory(lambda: "step 3", CPU.device, "Do"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(lambda: "", CPU.device, ""):
        raise RuntimeError("shapes do not match")
