"""What a real GPU computes, with the CPU as the reference; the path without one is in test_path.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from builders.data import make_images
from builders.runs import EVERY_STEP, Double, make_job, tiny_spec
from builders.tensors import natural, seeded
from wmse.datasets import ArrayDataset
from wmse.estimate.memory import two_steps
from wmse.methods import StepOutput
from wmse.runtime import Runtime, resolve
from wmse.training import Job, Stopped, Trainer
from wmse.views import ViewRecipe, draw_params, make_view

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none on this machine")

METHODS = ("wmse-2", "wmse-4", "simclr", "byol")


@pytest.fixture
def gpu() -> Runtime:
    """Float32 without TF32."""
    return resolve("cuda", "fp32", compile="false")


class DoubleAnywhere(Double):
    """Float64 throughout: what differs by more than 1e-5 then is another computation, not rounding."""

    def place(self, module: nn.Module) -> nn.Module:
        return super().place(module).to(self.device)


DOUBLE_CPU = DoubleAnywhere(torch.device("cpu"))
DOUBLE_GPU = DoubleAnywhere(torch.device("cuda"))


@pytest.mark.parametrize(("blur_p", "crop_first"), [(0.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize(("h", "w", "size"), [(32, 32, 32), (96, 96, 64), (75, 50, 224), (333, 500, 224)])
def test_views_are_those_of_the_cpu_to_the_bit(h: int, w: int, size: int, blur_p: float, crop_first: bool) -> None:
    recipe = ViewRecipe(
        size, crop_scale=(0.08, 1.0), grayscale_p=0.2, blur_p=blur_p, crop_first=crop_first, mean=(0.4, 0.5, 0.6)
    )
    images = natural(16, h, w)
    sizes = torch.stack([torch.randint(h // 2, h + 1, (16,)), torch.randint(w // 2, w + 1, (16,))], dim=1)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    params = draw_params(16, *sizes.T, recipe, seeded(1))
    expected = make_view(images, recipe, params, sizes)
    found = make_view(images.cuda(), recipe, params, sizes)
    assert torch.equal(found.cpu(), expected)


def take_step(job: Job) -> tuple[StepOutput, list[Tensor]]:
    trainer = Trainer(job)
    output = trainer.step(torch.arange(job.spec.batch_size))
    trainer.guard.flush()
    return output, [p.grad.cpu() for p in trainer.method.parameters() if p.grad is not None]


@pytest.mark.parametrize("label", METHODS)
def test_loss_and_gradient_are_those_of_the_cpu(label: str, data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec(label, width=16)
    expected, expected_gradients = take_step(make_job(spec, data, tmp_path / "cpu", DOUBLE_CPU))
    found, found_gradients = take_step(make_job(spec, data, tmp_path / "gpu", DOUBLE_GPU))
    torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-5, atol=0)
    for gradient, other in zip(found_gradients, expected_gradients, strict=True):
        assert (gradient - other).norm() <= 1e-5 * max(other.norm(), 1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
def test_the_weights_after_a_step_are_those_of_the_cpu(optimizer: str, data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec(optimizer=optimizer, width=16)
    expected, found = (Trainer(make_job(spec, data, tmp_path, runtime)) for runtime in (DOUBLE_CPU, DOUBLE_GPU))
    for trainer in (expected, found):
        trainer.step(torch.arange(64))
    for name, value in weights_of(expected).items():
        torch.testing.assert_close(weights_of(found)[name], value, rtol=1e-5, atol=1e-7)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in trainer.method.state_dict().items()}


@pytest.fixture
def deterministic() -> Iterator[Runtime]:
    yield resolve("cuda", "fp32", compile="false", deterministic=True)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("label", METHODS)
def test_a_deterministic_run_gives_the_same_bits_twice_and_when_it_is_resumed(
    label: str, data: ArrayDataset, tmp_path: Path, deterministic: Runtime
) -> None:
    spec = tiny_spec(label)

    def trainer(name: str) -> Trainer:
        return Trainer(make_job(spec, data, tmp_path / name, deterministic, checkpoints=EVERY_STEP))

    runs = [trainer(name) for name in ("first", "second")]
    histories = [run.run() for run in runs]
    stopped = trainer("stopped")
    stopped.stop = lambda: signal.SIGTERM if stopped.progress.step == 4 else None
    with pytest.raises(Stopped):
        stopped.run()
    resumed = trainer("stopped")
    histories.append(resumed.run())
    losses = [[record.loss for record in history] for history in histories]
    assert losses[0] == losses[1] == losses[2]
    for other in (runs[1], resumed):
        expected, found = weights_of(runs[0]), weights_of(other)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_host_waits_for_nothing_in_a_step(data: ArrayDataset, tmp_path: Path, gpu: Runtime) -> None:
    trainer = Trainer(make_job(tiny_spec(), data, tmp_path, gpu))
    trainer.step(torch.arange(64))
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(torch.arange(64))
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_memory_of_a_step_is_what_was_counted(tmp_path: Path, deterministic: Runtime) -> None:
    spec = tiny_spec(batch_size=512, width=64, view_size=32, eval_resize=32)  # fp32
    split = make_images(512, 0)
    data = ArrayDataset(pretrain=split, train=split, test=split)
    counted = two_steps(spec, {"pretrain": 512, "train": 512, "test": 512}).memory.peak
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(make_job(spec, data, tmp_path, deterministic))
    for _ in range(2):
        trainer.step(torch.arange(512))
    trainer.guard.flush()
    # What is not counted, such as workspaces of cuDNN, makes the real peak larger.
    assert 0.5 < counted / (torch.cuda.max_memory_allocated() - before) < 1.05


# --- compile


COMPILED = replace(DOUBLE_GPU, compile=True)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is compiled before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("blur_p", [0.0, 0.5])
def test_replayed_views_are_the_same_to_the_bit(blur_p: float, fresh: None) -> None:
    recipe = ViewRecipe(24, crop_scale=(0.08, 1.0), grayscale_p=0.2, blur_p=blur_p, mean=(0.4, 0.5, 0.6))
    images = natural(16, 32, 40)
    resident = images.cuda()
    for step in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        drawn = [draw_params(16, 32, 40, recipe, seeded(2 * step + view)) for view in range(2)]
        found = [make_view(resident, recipe, params, replayed=True) for params in drawn]
        for view, params in zip(found, drawn, strict=True):
            assert torch.equal(view.cpu(), make_view(images, recipe, params))


@pytest.mark.parametrize("label", METHODS)
def test_a_compiled_step_has_the_loss_and_gradient_of_another_and_compiles_once(
    label: str, data: ArrayDataset, tmp_path: Path, fresh: None
) -> None:
    spec = tiny_spec(label, width=16)
    plain, compiled = (Trainer(make_job(spec, data, tmp_path, runtime)) for runtime in (DOUBLE_GPU, COMPILED))
    for step in range(5):  # recorded in the first ones, replayed in the others
        index = torch.arange(64) + step
        expected = plain.step(index)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            found = compiled.step(index)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
        gradients = [[p.grad for p in t.method.parameters() if p.grad is not None] for t in (compiled, plain)]
        for gradient, other in zip(*gradients, strict=True):
            assert (gradient - other).norm() <= 1e-5 * max(other.norm(), 1e-9)


def test_a_compiled_step_has_a_tenth_of_the_launches(
    data: ArrayDataset, tmp_path: Path, gpu: Runtime, fresh: None
) -> None:
    launches = {}
    for compiled in (False, True):
        trainer = Trainer(make_job(tiny_spec(), data, tmp_path, replace(gpu, compile=compiled)))
        for _ in range(5):
            trainer.step(torch.arange(64))
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            trainer.step(torch.arange(64))
            torch.cuda.synchronize()
        calls = profiler.key_averages()
        launches[compiled] = sum(call.count for call in calls if "Launch" in call.key and call.key.startswith("cu"))
    print(f"launches of a step: {launches[False]}, compiled {launches[True]}")
    assert launches[True] < launches[False] / 10


def test_a_compiled_run_is_resumed(data: ArrayDataset, tmp_path: Path, gpu: Runtime, fresh: None) -> None:
    runtime, spec = replace(gpu, compile=True), tiny_spec()
    stopped = Trainer(make_job(spec, data, tmp_path / "stopped", runtime, checkpoints=EVERY_STEP))
    stopped.stop = lambda: signal.SIGTERM if stopped.progress.step == 4 else None
    with pytest.raises(Stopped):
        stopped.run()
    resumed = Trainer(make_job(spec, data, tmp_path / "stopped", runtime, checkpoints=EVERY_STEP)).run()
    straight = Trainer(make_job(spec, data, tmp_path / "straight", runtime)).run()
    assert [record.step for record in resumed] == [record.step for record in straight]
    assert [record.loss for record in resumed] == pytest.approx([record.loss for record in straight], rel=1e-2)
