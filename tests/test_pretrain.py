"""The trainer: what a step computes, records, checkpoints, and that stopping and continuing changes no bit."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FakeData, tiny_spec
from safetensors.torch import load_file

from wmse.config import RunSpec
from wmse.errors import CheckpointError, ConfigError, TrainingError
from wmse.methods import build_encoder, build_method
from wmse.optim import learning_rate
from wmse.pretrain import Stopped, Trainer, evaluation_due, pretrain
from wmse.runtime import Runtime, resolve
from wmse.streams import stream, stream_seed

CPU = Runtime(torch.device("cpu"), channels_last=False)


def train(spec: RunSpec, data: FakeData, out: Path, stop_after: int | None = None, **settings: object) -> Trainer:
    """Run a trainer, optionally stopping after some steps; returns it."""
    trainer = Trainer(spec, data, out, CPU, log=lambda line: None, **settings)
    trainer.stop = lambda: stop_after is not None and trainer.progress.step == stop_after
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


TIMING = ("seconds", "views_per_second", "peak_memory_mb")


def without_timing(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in history]


@pytest.mark.parametrize("label", ["wmse-2", "wmse-4", "simclr"])
@pytest.mark.parametrize("stops", [[1], [3], [4, 5], [8]])
def test_stopped_and_continued_equals_straight_bit_for_bit(
    label: str, stops: list[int], data: FakeData, tmp_path: Path
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


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(data: FakeData, tmp_path: Path) -> None:
    runs = [train(tiny_spec(seed=seed), data, tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert_same_bits(state_of(runs[0]), state_of(runs[1]))
    assert not torch.equal(runs[0].method.encoder.conv1.weight, runs[2].method.encoder.conv1.weight)


class Double(Runtime):
    """Float64 throughout, so that a comparison is not blurred by the chaos of float32 training."""

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.double()

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def plain_wmse(v: list[torch.Tensor], slices: list[torch.Tensor]) -> torch.Tensor:
    """The paper's loss for two views, one sub-batch and one view at a time."""
    z = [torch.empty_like(view) for view in v]
    for rows in slices:
        for view, out in zip(v, z, strict=True):
            x = view[rows] - view[rows].mean(0)
            out[rows] = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (len(rows) - 1))).T
    return 2 - 2 * torch.nn.functional.cosine_similarity(z[0], z[1]).mean()


def test_parameters_equal_a_plain_loop_with_torchs_own_parts(data: FakeData, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-2", epochs=10)
    trainer = Trainer(spec, data, tmp_path, Double(torch.device("cpu")), log=lambda line: None)
    trainer.run()
    method = build_method(spec, stream_seed(0, "weights")).double()
    optimizer = torch.optim.Adam(method.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    step = 0
    for epoch in range(spec.epochs):
        order, losses = torch.randperm(200, generator=stream(0, "order", epoch)), []
        for index in order[:192].split(64):
            features = [method.encoder(view.double()) for view in trainer.images.views(index, 2, 0, step)]
            v = method.head(torch.cat(features)).split(64)
            loss = plain_wmse(list(v), list(torch.randperm(64, generator=stream(0, "slices", step)).split(32)))
            optimizer.param_groups[0]["lr"] = learning_rate(spec, step, 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
        assert trainer.progress.history[epoch]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-7)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(state_of(trainer)[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_last_partial_batch_is_dropped(data: FakeData, tmp_path: Path) -> None:
    trainer = train(tiny_spec(epochs=1, lr_drops=[]), data, tmp_path)
    assert trainer.progress.step == 3  # 200 images in batches of 64
    assert trainer.progress.history[0]["views"] == 3 * 64 * 2


def test_training_reduces_the_loss_and_does_not_collapse(data: FakeData, tmp_path: Path) -> None:
    history = train(tiny_spec(epochs=8, lr=1e-3), data, tmp_path).progress.history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["embedding_std"] > 0.3
    assert history[-1]["effective_rank"] > 3


def test_evaluations_are_more_frequent_after_the_first_drop() -> None:
    spec = tiny_spec(epochs=100, lr_drops=[50, 25], eval_every=20, eval_every_final=5)
    assert [e for e in range(1, 101) if evaluation_due(spec, e)] == [20, 40, *range(55, 101, 5)]


def test_a_run_leaves_encoder_history_events_and_summary(data: FakeData, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4")
    pretrain(spec, data, tmp_path, CPU, preset="test", log=lambda line: None)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["knn5_top1"]) for row in rows] == [False, True, True]
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    assert summary["spec_hash"] == spec.hash
    assert summary["data"]["digest"] == data.digest
    assert {"commit", "versions", "hardware", "runtime", "finished"} <= summary["provenance"].keys()
    assert summary["pretrain"]["steps"] == 9
    assert list((tmp_path / "tensorboard").glob("events*"))
    encoder = build_encoder(spec, 0)
    encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"))


def test_a_finished_run_is_not_trained_again(data: FakeData, tmp_path: Path) -> None:
    first = train(tiny_spec(), data, tmp_path)
    second = Trainer(tiny_spec(), data, tmp_path, CPU, log=lambda line: None)
    second.step = None  # would fail if a step were taken
    second.run()
    assert second.progress == first.progress


def test_a_checkpoint_of_another_configuration_is_refused(data: FakeData, tmp_path: Path) -> None:
    train(tiny_spec(), data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: belongs to the run .* configuration differs"):
        Trainer(tiny_spec(lr=0.1), data, tmp_path, CPU).run()


def test_a_checkpoint_of_other_data_or_precision_is_refused(data: FakeData, tmp_path: Path) -> None:
    train(tiny_spec(), data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match="precision fp32"):
        Trainer(tiny_spec(), data, tmp_path, Runtime(torch.device("cpu"), "bf16")).run()
    data.digest = "sha256:other"
    with pytest.raises(CheckpointError, match="data sha256:fake"):
        Trainer(tiny_spec(), data, tmp_path, CPU).run()


class Payload:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_damaged_or_malicious_checkpoint_is_refused_and_executes_nothing(data: FakeData, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    train(tiny_spec(), data, tmp_path, stop_after=2)
    whole = checkpoint.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a readable checkpoint"):
            Trainer(tiny_spec(), data, tmp_path, CPU).run()
    torch.save({"format": 1, "hash": Payload(tmp_path / "executed")}, checkpoint)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        Trainer(tiny_spec(), data, tmp_path, CPU).run()
    assert not (tmp_path / "executed").exists()


def test_a_singular_sub_batch_names_run_step_and_sub_batch(data: FakeData, tmp_path: Path) -> None:
    trainer = Trainer(tiny_spec(), data, tmp_path, CPU, log=lambda line: None)
    torch.nn.init.zeros_(trainer.method.head[-1].weight)  # all embeddings are equal
    with pytest.raises(TrainingError, match=r"cifar10/wmse-2/seed0-\w+: step 0 \(epoch 1\): view 0, .*sub-batch 0"):
        trainer.run()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_loss_that_is_not_finite_stops_the_run(data: FakeData, tmp_path: Path) -> None:
    trainer = Trainer(tiny_spec("simclr"), data, tmp_path, CPU, log=lambda line: None)
    torch.nn.init.constant_(trainer.method.encoder.conv1.weight, float("nan"))
    with pytest.raises(TrainingError, match=r"step 0 .*not finite"):
        trainer.run()


def test_a_batch_larger_than_the_data_is_a_configuration_error(data: FakeData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size \(256\) exceeds the 200 images"):
        Trainer(tiny_spec(batch_size=256), data, tmp_path, CPU)


def test_two_processes_cannot_train_the_same_run(data: FakeData, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom wmse.files import exclusive_lock\n"
            "with exclusive_lock(Path(sys.argv[1]), 'the other one'):\n"
            "    print('held', flush=True)\n    time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(TrainingError, match=rf"the other one \(pid {holder.pid}\)"):
            pretrain(tiny_spec(), data, tmp_path, CPU)
    finally:
        holder.kill()
        holder.wait()


def test_sigterm_writes_a_checkpoint_and_the_next_call_continues(data: FakeData, tmp_path: Path) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    with pytest.raises(Stopped) as caught:
        pretrain(tiny_spec(), data, tmp_path / "stopped", CPU, log=log)
    assert caught.value.signal == signal.SIGTERM
    assert not (tmp_path / "stopped" / "encoder.safetensors").exists()
    pretrain(tiny_spec(), data, tmp_path / "stopped", CPU, log=lines.append)
    assert any("continuing" in line for line in lines)
    pretrain(tiny_spec(), data, tmp_path / "straight", CPU, log=lines.append)
    encoders = [load_file(tmp_path / name / "encoder.safetensors") for name in ("stopped", "straight")]
    assert_same_bits(*encoders)


def test_bf16_keeps_the_loss_in_float32_and_stays_close(data: FakeData, tmp_path: Path) -> None:
    spec = tiny_spec(epochs=1, lr_drops=[])
    low = Runtime(torch.device("cpu"), "bf16")
    losses = []
    for runtime in (CPU, low):
        trainer = Trainer(spec, data, tmp_path / runtime.precision, runtime, log=lambda line: None)
        output = trainer.step(torch.arange(64))
        assert output.loss.dtype == torch.float32
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_run_finds_a_singular_sub_batch_within_one_step(data: FakeData, tmp_path: Path) -> None:
    runtime = resolve("cuda", "fp32", compile="false")
    trainer = Trainer(tiny_spec(), data, tmp_path, runtime, log=lambda line: None)
    torch.nn.init.zeros_(trainer.method.head[-1].weight)
    with pytest.raises(TrainingError, match=r"step 0 \(epoch 1\): view 0"):
        trainer.run()
