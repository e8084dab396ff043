"""The trainer: what a step computes, records, checkpoints, and that stopping and continuing changes no bit."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from builders.forked import TIMING
from builders.runs import CPU, Double, make_job, tiny_spec
from wmse.config import RunSpec
from wmse.datasets import ArrayDataset
from wmse.errors import CheckpointError, ConfigError, TrainingError
from wmse.methods import build_encoder, build_method
from wmse.runtime import Runtime, resolve
from wmse.streams import stream, stream_seed
from wmse.training import Stopped, Trainer, pretrain
from wmse.training.history import EpochRecord


def train(spec: RunSpec, data: ArrayDataset, out: Path, stop_after: int | None = None, **settings: object) -> Trainer:
    """Run a trainer, optionally stopping after some steps; returns it."""
    trainer = Trainer(make_job(spec, data, out, **settings))
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == stop_after else None
    if stop_after is None:
        trainer.run()
    else:
        with pytest.raises(Stopped):
            trainer.run()
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.method.state_dict()


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def without_timing(history: list[EpochRecord]) -> list[dict]:
    return [{key: value for key, value in vars(record).items() if key not in TIMING} for record in history]


@pytest.mark.parametrize("label", ["wmse-2", "wmse-4", "simclr", "byol"])
@pytest.mark.parametrize("stops", [[1], [3], [4, 5], [8]])
def test_stopped_and_continued_equals_straight_bit_for_bit(
    label: str, stops: list[int], data: ArrayDataset, tmp_path: Path
) -> None:
    spec = tiny_spec(label)  # 3 steps an epoch, 9 in all: the stops lie inside and between epochs
    straight = train(spec, data, tmp_path / "straight")
    for stop in stops:
        torch.randn(stop)  # whatever else uses the global generator must not matter
        train(spec, data, tmp_path / "stopped", stop_after=stop)
    continued = train(spec, data, tmp_path / "stopped")
    assert_same_bits(state_of(straight), state_of(continued))
    assert without_timing(straight.progress.history) == without_timing(continued.progress.history)
    assert continued.progress.resumed == len(stops)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(data: ArrayDataset, tmp_path: Path) -> None:
    runs = [train(tiny_spec(seed=seed), data, tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert_same_bits(state_of(runs[0]), state_of(runs[1]))
    assert not torch.equal(runs[0].method.encoder.conv1.weight, runs[2].method.encoder.conv1.weight)


def plain_wmse(v: list[torch.Tensor], slices: list[torch.Tensor]) -> torch.Tensor:
    """The paper's loss, one sub-batch, one view and one pair of views at a time."""
    z = [torch.empty_like(view) for view in v]
    for rows in slices:
        for view, out in zip(v, z, strict=True):
            x = view[rows] - view[rows].mean(0)
            out[rows] = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (len(rows) - 1))).T
    pairs = [2 - 2 * torch.nn.functional.cosine_similarity(a, b).mean() for a, b in combinations(z, 2)]
    return sum(pairs) / len(pairs)


def plain_simclr(v: list[torch.Tensor]) -> torch.Tensor:
    """NT-Xent with temperature 0.5 of two views: each sample against all others of both."""
    z = torch.nn.functional.normalize(torch.cat(v), dim=1)
    n, terms = len(v[0]), []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        terms.append((z[i] @ z[others].T / 0.5).logsumexp(0) - z[i] @ z[(i + n) % (2 * n)] / 0.5)
    return sum(terms) / len(terms)


def plain_byol(p: list[torch.Tensor], t: list[torch.Tensor]) -> torch.Tensor:
    cosine = torch.nn.functional.cosine_similarity
    return (2 - 2 * cosine(p[0], t[1])).mean() + (2 - 2 * cosine(p[1], t[0])).mean()


def plain_loss(method: torch.nn.Module, label: str, images: list[torch.Tensor], step: int) -> torch.Tensor:
    """Forward passes view by view through the networks of `method`, never through its own forward."""
    if label == "byol":
        online = [method.predictor(method.head(method.encoder(view))) for view in images]
        with torch.no_grad():
            targets = [method.target(view) for view in images]
        return plain_byol(online, targets)
    features = torch.cat([method.encoder(view) for view in images])
    v = list(method.head(features).split(64))
    if label == "simclr":
        return plain_simclr(v)
    return plain_wmse(v, list(torch.randperm(64, generator=stream(0, "slices", step)).split(32)))


@pytest.mark.parametrize("label", ["wmse-2", "wmse-4", "simclr", "byol"])
def test_thirty_steps_equal_a_plain_trainer_of_torchs_own_parts(label: str, data: ArrayDataset, tmp_path: Path) -> None:
    """Same losses and same parameters, buffers included: torch's Adam, MultiStepLR per epoch, the authors' warm-up."""
    spec = tiny_spec(label, epochs=10, lr_drops=[4, 2], warmup_iterations=5)
    trainer = Trainer(make_job(spec, data, tmp_path, Double(torch.device("cpu"))))
    trainer.run()
    method = build_method(spec, stream_seed(0, "weights")).double().train()
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=spec.lr, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8], gamma=0.2)
    step = 0
    for epoch in range(10):
        order, losses = torch.randperm(200, generator=stream(0, "order", epoch)), []
        for index in order[:192].split(64):
            images = [view.double() for view in trainer.images.views(index, spec.d, 0, step)]
            loss = plain_loss(method, label, images, step)
            if step < 5:
                optimizer.param_groups[0]["lr"] = spec.lr * (step + 1) / 5
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if label == "byol":
                decay = 1 - 0.01 * (math.cos(math.pi * epoch / 10) + 1) / 2
                online = [*method.encoder.parameters(), *method.head.parameters()]
                for t, p in zip(method.target.parameters(), online, strict=True):
                    t.data = t.data * decay + p.data * (1 - decay)
            step += 1
            losses.append(loss.item())
        assert trainer.progress.history[epoch].loss == pytest.approx(sum(losses) / 3, rel=1e-7)
        assert trainer.progress.history[epoch].lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        schedule.step()
    assert step == trainer.progress.step == 30
    for name, value in method.state_dict().items():
        torch.testing.assert_close(state_of(trainer)[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_probe_sees_the_encoder_in_eval_mode_and_leaves_it_training(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = Trainer(make_job(tiny_spec(), data, tmp_path))
    trainer.method.train()
    before, modes = trainer.method.encoder.bn1.running_mean.clone(), []
    trainer.method.encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.knn()
    assert modes
    assert not any(modes)
    assert torch.equal(trainer.method.encoder.bn1.running_mean, before)
    assert all(module.training for module in trainer.method.modules())


@pytest.mark.parametrize("label", ["wmse-2", "byol"])
def test_what_ran_before_changes_no_bit(label: str, data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec(label, epochs=1, lr_drops=[])
    alone = train(spec, data, tmp_path / "alone")
    torch.manual_seed(7)
    torch.randn(1000).sort()
    train(tiny_spec("simclr", seed=3, epochs=1, lr_drops=[]), data, tmp_path / "other")
    again = train(spec, data, tmp_path / "again")
    assert_same_bits(state_of(alone), state_of(again))


def test_the_last_partial_batch_is_dropped(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = train(tiny_spec(epochs=1, lr_drops=[]), data, tmp_path)
    assert trainer.progress.step == 3  # 200 images in batches of 64
    assert trainer.progress.history[0].views == 3 * 64 * 2


def test_training_reduces_the_loss_and_does_not_collapse(data: ArrayDataset, tmp_path: Path) -> None:
    history = train(tiny_spec(epochs=24, lr=1e-3), data, tmp_path).progress.history
    assert history[-1].loss < 0.8 * history[0].loss
    assert history[-1].embedding_std > 0.3
    assert history[-1].effective_rank > 3


def test_evaluations_are_more_frequent_after_the_first_drop() -> None:
    spec = tiny_spec(epochs=100, lr_drops=[50, 25], eval_every=20, eval_every_final=5)
    assert [e for e in range(1, 101) if spec.evaluation_due(e)] == [20, 40, *range(55, 101, 5)]


def test_a_run_leaves_encoder_history_events_and_summary(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4")
    pretrain(make_job(spec, data, tmp_path, preset="test"))
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["knn5_top1"]) for row in rows] == [False, True, True]
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    assert summary["spec_hash"] == spec.hash
    assert summary["data"]["digest"] == data.digest
    assert {"commit", "versions", "hardware", "runtime", "finished"} <= summary["provenance"].keys()
    assert summary["pretrain"]["steps"] == 9
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [scalar.step for scalar in events.Scalars("knn5_top1")] == [6, 9]
    assert [scalar.value for scalar in events.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in rows])
    encoder = build_encoder(spec, 0)
    encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"))


def test_a_finished_run_is_not_trained_again(data: ArrayDataset, tmp_path: Path) -> None:
    first = train(tiny_spec(), data, tmp_path)
    second = Trainer(make_job(tiny_spec(), data, tmp_path))
    second.step = None  # would fail if a step were taken
    second.run()
    assert second.progress == first.progress


def test_a_checkpoint_of_another_configuration_is_refused(data: ArrayDataset, tmp_path: Path) -> None:
    train(tiny_spec(), data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=r"step-000000002-\w+\.pt: belongs to the run .* configuration differs"):
        Trainer(make_job(tiny_spec(lr=0.1), data, tmp_path)).run()


def test_a_checkpoint_of_other_data_or_precision_is_refused(data: ArrayDataset, tmp_path: Path) -> None:
    train(tiny_spec(), data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match="precision fp32"):
        Trainer(make_job(tiny_spec(), data, tmp_path, Runtime(torch.device("cpu"), "bf16"))).run()
    data.digest = "sha256:other"
    with pytest.raises(CheckpointError, match="data sha256:memory"):
        Trainer(make_job(tiny_spec(), data, tmp_path)).run()


def test_a_singular_sub_batch_names_run_step_and_sub_batch(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = Trainer(make_job(tiny_spec(), data, tmp_path))
    torch.nn.init.zeros_(trainer.method.head[-1].weight)  # all embeddings are equal
    with pytest.raises(TrainingError, match=r"cifar10/wmse-2/seed0-\w+: step 0 \(epoch 1\): view 0, .*sub-batch 0"):
        trainer.run()
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_the_run(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = Trainer(make_job(tiny_spec("simclr"), data, tmp_path))
    torch.nn.init.constant_(trainer.method.encoder.conv1.weight, float("nan"))
    with pytest.raises(TrainingError, match=r"step 0 .*not finite"):
        trainer.run()


def test_a_batch_larger_than_the_data_is_a_configuration_error(data: ArrayDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size \(256\) exceeds the 200 images"):
        Trainer(make_job(tiny_spec(batch_size=256), data, tmp_path))


def test_two_processes_cannot_train_the_same_run(data: ArrayDataset, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom wmse.locks import exclusive_lock\n"
            "with exclusive_lock(Path(sys.argv[1]), 'the other one'):\n"
            "    print('held', flush=True)\n    time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(TrainingError, match=rf"the other one \(pid {holder.pid} on "):
            pretrain(make_job(tiny_spec(), data, tmp_path))
    finally:
        holder.kill()
        holder.wait()


def test_sigterm_writes_a_checkpoint_and_the_next_call_continues(data: ArrayDataset, tmp_path: Path) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    with pytest.raises(Stopped) as caught:
        pretrain(make_job(tiny_spec(), data, tmp_path / "stopped", log=log))
    assert caught.value.signal == signal.SIGTERM
    assert not (tmp_path / "stopped" / "encoder.safetensors").exists()
    pretrain(make_job(tiny_spec(), data, tmp_path / "stopped", log=lines.append))
    assert any("continuing" in line for line in lines)
    pretrain(make_job(tiny_spec(), data, tmp_path / "straight", log=lines.append))
    encoders = [load_file(tmp_path / name / "encoder.safetensors") for name in ("stopped", "straight")]
    assert_same_bits(*encoders)


def test_bf16_keeps_the_loss_in_float32_and_stays_close(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec(epochs=1, lr_drops=[])
    low = Runtime(torch.device("cpu"), "bf16")
    losses = []
    for runtime in (CPU, low):
        trainer = Trainer(make_job(spec, data, tmp_path / runtime.precision, runtime))
        output = trainer.step(torch.arange(64))
        assert output.loss.dtype == torch.float32
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_run_finds_a_singular_sub_batch_within_one_step(data: ArrayDataset, tmp_path: Path) -> None:
    runtime = resolve("cuda", "fp32", compile="false")
    trainer = Trainer(make_job(tiny_spec(), data, tmp_path, runtime))
    torch.nn.init.zeros_(trainer.method.head[-1].weight)
    with pytest.raises(TrainingError, match=r"step 0 \(epoch 1\): view 0"):
        trainer.run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_run_that_was_stopped_within_an_epoch_goes_on(data: ArrayDataset, tmp_path: Path) -> None:
    runtime = resolve("cuda", "fp32", compile="false")
    trainer = Trainer(make_job(tiny_spec(), data, tmp_path, runtime))
    trainer.stop = lambda: signal.SIGTERM if trainer.progress.step == 4 else None
    with pytest.raises(Stopped):
        trainer.run()
    history = Trainer(make_job(tiny_spec(), data, tmp_path, runtime)).run()
    assert [(record.epoch, record.step) for record in history] == [(1, 3), (2, 6), (3, 9)]
    straight = Trainer(make_job(tiny_spec(), data, tmp_path / "straight", runtime)).run()
    assert [record.loss for record in history] == pytest.approx([record.loss for record in straight], rel=1e-2)


def test_a_signal_that_arrives_twice_is_one_request_and_a_later_one_ends_the_process() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from wmse.training import signals\n"
        "signals.SAME_REQUEST = 0.5\n"
        "with signals.stop_on_signals() as received:\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(received, flush=True)\n"
        "    time.sleep(0.6)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[15]\n", done.stdout + done.stderr
    assert done.returncode == -signal.SIGTERM
