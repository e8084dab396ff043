"""The pretended GPU itself: what it refuses, what it counts, and that nothing of it is left afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from wmse.estimate.pretend import FOUND, LiveBytes, pretend_gpu
from wmse.views.params import on_device
from wmse.views.tensors import hue_table

MB = 2**20


def test_tensors_of_the_host_are_real_and_those_of_the_gpu_have_no_values() -> None:
    with pretend_gpu() as gpu:
        host = torch.arange(4)
        device = on_device(host, "cuda")
        assert host.tolist() == [0, 1, 2, 3]
        assert isinstance(device, FakeTensor)
        assert device.is_cuda
        assert device.device == torch.device("cuda:0")
        assert not gpu.waits
        assert not host.is_cuda


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: float(x[0]), "item"),
        (lambda x: bool(x.any()), "item"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x.tolist(), "copy to the host"),
        (lambda x: torch.zeros(4).copy_(x), "copy to the host"),
        (lambda x: torch.zeros(4).to(x.device), "copy to the GPU"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "copy to the GPU"),
        (lambda x: x.copy_(torch.zeros(4)), "copy to the GPU"),
        (lambda x: torch.zeros(4).to(x.device, non_blocking=True), "copy of pageable memory"),
        (lambda x: x[torch.tensor([0, 1])], "index by tensors of the host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.index_put_((x > 0,), x), "index by a mask"),
    ],
)
def test_every_wait_is_counted_by_its_kind(wait: object, name: str) -> None:
    with pretend_gpu() as gpu:
        x = torch.ones(4, device="cuda")
        wait(x)
    assert gpu.waits == {name: 1}


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * 2 + torch.tensor(3.0),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.randperm(4).pin_memory().to(x.device, non_blocking=True),
        lambda x: x.new_zeros(3),
        lambda x: x[torch.arange(2, device=x.device)],
    ],
)
def test_what_a_gpu_does_alone_is_no_wait(step: object) -> None:
    with pretend_gpu() as gpu:
        step(torch.ones(4, device="cuda"))
    assert not gpu.waits
    assert gpu.launches >= 1


def test_tensors_of_two_devices_shapes_and_types_that_do_not_fit_and_unknown_shapes_are_refused() -> None:
    with pretend_gpu():
        x = torch.ones(4, 4, device="cuda")
        with pytest.raises(RuntimeError, match=r"device"):
            x + torch.ones(4, 4)
        with pytest.raises(RuntimeError, match="reduction dim"):
            x @ torch.ones(5, 5, device="cuda")
        with pytest.raises(RuntimeError, match="dtype"):
            x @ x.double()
        with pytest.raises(RuntimeError, match="nonzero"):
            x[x > 0]


def test_values_that_the_host_is_told() -> None:
    with pretend_gpu():
        x = torch.rand(20, device="cuda")
        assert x.sum().item() == 1.0
        assert (x > 2).any().item() is True
        assert x.cpu().tolist() == [0.0] * 20
        assert x.nonzero().shape == (FOUND, 1)


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_and_autograd_work_as_on_a_gpu(autocast: bool, dtype: torch.dtype) -> None:
    with pretend_gpu() as gpu:
        layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 2)
        net = nn.Sequential(*layers).to("cuda")
        gpu.waits.clear()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = net(torch.rand(7, 3, 8, 8, device="cuda"))
        y.float().square().mean().backward()
    assert y.dtype == dtype
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.grad.shape == p.shape and isinstance(p.grad, FakeTensor) for p in net.parameters())
    assert not gpu.waits


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        assert x.is_cuda
        return x * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_functions_with_their_own_gradient_are_differentiated() -> None:
    with pretend_gpu():
        x = torch.ones(3, device="cuda", requires_grad=True)
        Square.apply(x).sum().backward()
        assert x.grad.shape == (3,)


def test_memory_is_that_of_living_storages() -> None:
    with pretend_gpu() as gpu:
        x = torch.empty(MB, device="cuda")
        view = x[1:].view(-1)
        assert gpu.memory.now == 4 * MB
        y = x.half()
        assert gpu.memory.now == 6 * MB
        del x, y
        assert gpu.memory.now == 4 * MB  # the view still needs it
        view.mul_(2)
        del view
        assert gpu.memory.now == 0
        assert gpu.memory.peak == 6 * MB
        kept = torch.empty(1, device="cuda")
        assert gpu.memory.now == 512  # the smallest block of CUDA's allocator
        assert kept.numel() == 1


def test_real_tensors_can_be_counted_too() -> None:
    memory = LiveBytes()
    x = torch.zeros(MB, dtype=torch.uint8)
    memory.see(x)
    memory.see(x[1:])
    assert memory.now == MB
    del x
    assert (memory.now, memory.peak) == (0, MB)


def test_nothing_is_left_of_a_pretended_gpu() -> None:
    event, info = torch.cuda.Event, torch.cuda.mem_get_info
    with pretend_gpu():
        assert isinstance(hue_table("cuda:0"), FakeTensor)
    assert (torch.cuda.Event, torch.cuda.mem_get_info) == (event, info)
    assert hue_table.cache_info().currsize == 0
    assert not isinstance(torch.ones(2), FakeTensor)
    layer = nn.Linear(2, 1)
    layer(torch.ones(3, 2)).sum().backward()
    assert layer.weight.grad.tolist() == [[3.0, 3.0]]


def test_an_event_knows_how_much_was_launched_since_it_was_recorded() -> None:
    with pretend_gpu() as gpu:
        x = torch.ones(2, device="cuda")
        event = torch.cuda.Event()
        event.record()
        x.add_(1)
        x.add_(1)
        event.synchronize()
    assert gpu.event_ages == [2]
