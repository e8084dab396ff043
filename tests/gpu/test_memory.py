"""The count of a GPU's memory against torch's own allocator, and the command that prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from builders.runs import tiny_spec
from wmse.cli import main
from wmse.config import RunSpec, make_spec
from wmse.estimate.memory import MemoryEstimate, estimate_memory, memory_table
from wmse.estimate.pretend import pretend_gpu
from wmse.methods import build_method
from wmse.runtime import Runtime
from wmse.training.optim import build_optimizer

aten = torch.ops.aten
NARROW = {"width": 16, "batch_size": 128, "head_hidden": 64}
PHOTOS = {"width": 16, "batch_size": 16, "view_size": 64, "eval_resize": 64, "w_size": 16, "embedding": 8}


class WithoutWorkspace(TorchDispatchMode):
    """Convolutions that allocate what they return and nothing else: how much more they take is the processor's affair.

    (In bfloat16 a processor without instructions for it unfolds its input.) What they return is zero.
    """

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operation not in (aten.convolution.default, aten.convolution_backward.default):
            return operation(*args, **(kwargs or {}))
        shapes = operation(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args))
        return tree_map_only(torch.Tensor, lambda shape: torch.zeros_like(shape, device="cpu"), shapes)


def two_steps(spec: RunSpec, runtime: Runtime) -> None:
    """The parts of two training steps that the processor and a GPU do by the same operations."""
    method = runtime.place(build_method(spec, 0))
    optimizer = build_optimizer(spec, method)
    shape = spec.batch_size, 3, spec.view_size, spec.view_size
    for _ in range(2):
        views = [torch.rand(shape, device=runtime.device) for _ in range(spec.d)]
        slices = method.draw(spec.batch_size, torch.Generator())
        slices = None if slices is None else slices.to(runtime.device)
        with runtime.autocast():
            output = method([runtime.batch(view) for view in views], slices)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        method.after_step(0.0)


def allocated_at_most(spec: RunSpec, runtime: Runtime) -> int:
    """The peak of torch's allocator on the CPU, which reports every block that it hands out and takes back."""
    with WithoutWorkspace(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        two_steps(spec, runtime)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("cell", "parameters", "precision"),
    [
        ("cifar10/wmse-2", NARROW, "fp32"),
        ("cifar10/wmse-2", NARROW, "bf16"),
        ("imagenet/wmse-4", PHOTOS, "fp32"),  # ResNet-50 and LARS
    ],
)
def test_the_count_is_that_of_torchs_allocator(cell: str, parameters: dict[str, int], precision: str) -> None:
    spec = make_spec(cell, 0, [parameters])
    with pretend_gpu() as gpu:
        two_steps(spec, Runtime(torch.device("cuda"), precision))
    real = allocated_at_most(spec, Runtime(torch.device("cpu"), precision))
    assert gpu.memory.peak == pytest.approx(real, rel=0.01)


def test_runs_that_cost_the_same_are_counted_once_and_baselines_need_nothing(tmp_path: Path) -> None:
    specs = [tiny_spec("wmse-2", seed=seed, benchmark="fashion_mnist") for seed in range(3)]
    rows = estimate_memory([*specs, tiny_spec("random", benchmark="fashion_mnist")], tmp_path)
    assert len({row.step_bytes for row in rows[:3]}) == 1
    assert rows[0].step_bytes > 10_000 * 3 * 32 * 32  # the images at least
    assert rows[3].step_bytes is None


def test_the_table_shows_batches_and_gigabytes() -> None:
    rows = [MemoryEstimate("imagenet/wmse-4/seed0", 4096, 4, 737_451_000_000), MemoryEstimate("r", 512, 1, None)]
    header, first, second = memory_table(rows).splitlines()
    assert len(header) == len(first) == len(second)
    assert first.endswith("4096 x 4    737.5 GB")
    assert second.split() == ["r", "—", "—"]


def test_the_command_needs_no_gpu_and_no_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(
        "preset: quick\nexperiments: [{benchmarks: [fashion_mnist], methods: [wmse-2, random]}]\n"
        "parameters: {'*': {width: 8, batch_size: 128}}\n"
    )
    command = ["estimate", "--memory", "--root", str(tmp_path), "--data-root", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "fashion_mnist/wmse-2/seed0" in shown
    assert "Not counted: " in shown
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["step_bytes"] is None for row in content["runs"]] == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
