"""`compile`: one graph of every method and of the views, which holds for all steps and computes the same."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders.runs import CPU, make_job, make_trainer, tiny_spec
from builders.tensors import natural, seeded
from wmse.config import RunSpec, experiments
from wmse.datasets import ArrayDataset
from wmse.errors import ConfigError
from wmse.methods import Method, build_method
from wmse.runtime import Runtime, compiler_errors
from wmse.training import pretrain
from wmse.views import ViewRecipe, draw_params
from wmse.views.tensors import compute_view, view_by_tensors

LABELS = sorted({label for e in experiments().values() for label in e["methods"]} - {"random", "pixels"})
ONE_GRAPH = {"fullgraph": True, "dynamic": False}


class Small(nn.Sequential):
    """An encoder with a convolution and a batch norm, whose tracing takes no time."""

    features = 16

    def __init__(self) -> None:
        layers = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()  # the code of a class is compiled for a few of its instances at most
    yield
    torch.compiler.reset()


def small_method(label: str, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSpec, Method]:
    spec = tiny_spec(label, lr_drops=[], w_size=16)
    monkeypatch.setattr("wmse.methods.Encoder", lambda *shape: Small())
    return spec, build_method(spec, 0)


def inputs(spec: RunSpec, method: Method, step: int) -> tuple[list[Tensor], Tensor | None]:
    views = [torch.randn(64, 3, 8, 8, generator=seeded(10 * step + i)).double() for i in range(spec.d)]
    return views, method.draw(64, seeded(step))


@pytest.mark.parametrize("label", LABELS)
def test_every_method_and_ablation_is_one_graph_with_the_same_loss_and_gradient(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, method = small_method(label, monkeypatch)
    plain = method.double().train()
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="aot_eager", **ONE_GRAPH)
    for step in range(3):
        stance = "default" if step == 0 else "fail_on_recompile"
        views, slices = inputs(spec, method, step)
        expected = plain(views, slices)
        with torch.compiler.set_stance(stance):
            found = compiled(views, slices)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-10, atol=1e-10)
        assert (found.factorisations is None) == (expected.factorisations is None)
        for output, owner in ((found, compiled), (expected, plain)):
            owner.zero_grad()
            output.loss.backward()
            owner.after_step(step / 3)
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)
    for (name, ours), theirs in zip(compiled.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)


class Devices:
    """A backend that runs a graph as it is, and notes where its tensors are."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Any:
        self.graphs += 1
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        self.found |= {value.device.type for value in values if isinstance(value, Tensor)}
        return graph.forward


@pytest.mark.parametrize("label", ["wmse-2", "wmse-2@w-iter-4", "wmse-2@batch-norm", "simclr", "byol"])
def test_nothing_of_a_step_is_on_the_host_so_that_a_gpu_may_record_it(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch makes no CUDA graph of what has a tensor on the CPU. The device "meta" stands for the GPU."""
    spec, method = small_method(label, monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no such device
    method = method.to("meta").train()
    devices = Devices()
    method.compile(backend=devices, **ONE_GRAPH)
    views, slices = inputs(spec, method, 0)
    method([view.float().to("meta") for view in views], None if slices is None else slices.to("meta"))
    assert devices.found == {"meta"}
    assert devices.graphs == 1


# --- views


RECIPE = ViewRecipe(24, crop_scale=(0.08, 1.0), grayscale_p=0.2, blur_p=0.5, mean=(0.4, 0.5, 0.6))
SIZES = torch.tensor([32, 40]).expand(8, 2)


def test_replayed_views_are_the_same_to_the_bit_and_recorded_once() -> None:
    images = natural(8, 32, 40)
    for step in range(3):
        params = draw_params(8, 32, 40, RECIPE, seeded(step))
        expected = view_by_tensors(images, RECIPE, params, SIZES)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            assert torch.equal(view_by_tensors(images, RECIPE, params, SIZES, replayed=True), expected)


def test_no_pixel_of_a_view_is_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    graph = torch.compile(compute_view, backend=devices, **ONE_GRAPH)
    monkeypatch.setattr("wmse.views.tensors.replay", lambda: graph)
    images = torch.zeros(8, 3, 32, 40, dtype=torch.uint8, device="meta")
    view_by_tensors(images, RECIPE, draw_params(8, 32, 40, RECIPE, seeded()), SIZES, replayed=True)
    assert devices.found == {"meta"}
    assert devices.graphs == 1


# --- training


def test_a_compiled_run_has_the_steps_names_and_checkpoints_of_another(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec(epochs=1, lr_drops=[])
    plain, compiled = (make_trainer(spec, data, tmp_path / name) for name in ("plain", "compiled"))
    names = list(compiled.method.state_dict())
    compiled.method.compile(backend="aot_eager", **ONE_GRAPH)
    assert list(compiled.method.state_dict()) == names
    history = compiled.run()
    state = copy.deepcopy(compiled.method.state_dict())
    assert history[0].loss == pytest.approx(plain.run()[0].loss, rel=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):  # one graph for every step, whatever its number and rate
        compiled.step(torch.arange(64))
    resumed = make_trainer(spec, data, tmp_path / "compiled")  # a checkpoint is one, whether it was compiled or not
    assert resumed.run() == history
    for name, value in resumed.method.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(("device", "mode"), [("cpu", None), ("cuda", "reduce-overhead")])
def test_a_gpu_gets_cuda_graphs_and_what_is_not_to_be_compiled_is_left_alone(device: str, mode: str | None) -> None:
    calls = []
    module = nn.Linear(1, 1)
    module.compile = lambda **settings: calls.append(settings)  # type: ignore[method-assign]
    runtime = Runtime(torch.device(device))
    runtime.compile_forward(module)
    assert calls == []
    replace(runtime, compile=True).compile_forward(module)
    assert calls == [{"mode": mode, **ONE_GRAPH}]


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler: there is no g++ (or $CXX)"
)
def test_torchs_compiler_computes_the_same_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, method = small_method("wmse-2", monkeypatch)
    plain = method.double().train()
    compiled = copy.deepcopy(plain)
    replace(CPU, compile=True).compile_forward(compiled)
    views, slices = inputs(spec, method, 0)
    expected, found = (owner(views, slices).loss for owner in (plain, compiled))
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


# --- errors


def test_what_cannot_be_compiled_is_one_message(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: torch.fx.GraphModule, example: Any) -> Any:
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(Runtime, "compile_forward", lambda self, module: module.compile(backend=broken))
    with pytest.raises(ConfigError, match=r"seed0.*: step 0: compile: .*no such compiler.*`compile: false`"):
        pretrain(make_job(tiny_spec("wmse-2"), data, tmp_path))
    with pytest.raises(ZeroDivisionError), compiler_errors(lambda: "here"):  # nothing else is touched
        1 / 0  # noqa: B018


COMPILE = """
import sys, torch
from wmse.errors import ConfigError
from wmse.runtime import compiler_errors
try:
    with compiler_errors(lambda: "here"):
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4))
except ConfigError as error:
    sys.exit(str(error))
"""


def test_without_a_compiler_on_the_machine_it_says_so(tmp_path: Path) -> None:
    variables = {"CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "here: compile: torch could not compile" in done.stderr
    assert "/nonexistent/g++" in done.stderr
