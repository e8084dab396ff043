"""Learning rates step by step and the optimisers against torch's and against arithmetic by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from builders.runs import tiny_spec
from wmse.config import RunSpec
from wmse.training.optim import LARS, build_optimizer, learning_rate

PAPER = RunSpec("cifar10", "wmse", epochs=120)  # 500 warm-up iterations, drops 50 and 25 epochs before the end


def authors_schedule(spec: RunSpec, steps_per_epoch: int) -> list[float]:
    """Every step's rate as the authors' loop sets it: MultiStepLR per epoch, overwritten during the warm-up."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=spec.lr)
    milestones = [spec.epochs - drop for drop in spec.lr_drops]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=spec.lr_drop_factor)
    rates = []
    for epoch in range(spec.epochs):
        for iteration in range(steps_per_epoch):
            step = epoch * steps_per_epoch + iteration
            if step < spec.warmup_iterations:
                optimizer.param_groups[0]["lr"] = spec.lr * (step + 1) / spec.warmup_iterations
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        schedule.step()
    return rates


def rates(spec: RunSpec, steps_per_epoch: int) -> list[float]:
    return [learning_rate(spec, step, steps_per_epoch) for step in range(spec.epochs * steps_per_epoch)]


@pytest.mark.parametrize("steps_per_epoch", [10, 97])  # the warm-up ends between two epochs, or within one
def test_every_step_has_the_authors_rate(steps_per_epoch: int) -> None:
    found = rates(PAPER, steps_per_epoch)
    assert found == pytest.approx(authors_schedule(PAPER, steps_per_epoch), rel=1e-12)
    assert found[0] == pytest.approx(3e-3 / 500)
    assert found[499:501] == pytest.approx([3e-3, 3e-3])
    assert found[-1] == pytest.approx(3e-3 * 0.2 * 0.2)
    changes = [step for step in range(501, len(found)) if found[step] != found[step - 1]]
    assert changes == [70 * steps_per_epoch, 95 * steps_per_epoch]


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    spec = RunSpec("cifar10", "wmse", epochs=60, warmup_iterations=0)
    assert rates(spec, 3) == pytest.approx(authors_schedule(spec, 3), rel=1e-12)
    assert learning_rate(spec, 0, 3) == spec.lr


def test_cosine_warms_up_over_epochs_and_falls_to_zero() -> None:
    spec = RunSpec("imagenet", "wmse", epochs=100, lr=4.8, schedule="cosine", warmup_epochs=10, warmup_iterations=0)
    steps_per_epoch = 7
    found = rates(spec, steps_per_epoch)
    assert found[:70] == pytest.approx([4.8 * (s + 1) / 70 for s in range(70)])
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=4.8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=630)
    expected = []
    for _ in range(630):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found[70:] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert learning_rate(spec, 700, steps_per_epoch) == pytest.approx(0, abs=1e-12)


def by_hand(w: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """Adam (Kingma & Ba 2015) with the penalty's gradient added to the loss's, in float64."""
    w, m, v = w.double(), 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        g = grad.double() + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.5])
def test_adam_has_torchs_defaults_and_adds_the_weight_decay_to_the_gradient(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    twin = copy.deepcopy(model)
    ours = build_optimizer(tiny_spec(weight_decay=decay, lr=0.03), model)
    torchs = torch.optim.Adam(twin.parameters(), lr=0.03, weight_decay=decay)
    before, grads = model.weight.detach().clone(), []
    for _ in range(5):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        grads.append(model.weight.grad.clone())
        ours.step()
        torchs.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.weight.double(), by_hand(before, grads, 0.03, decay), rtol=1e-5, atol=1e-6)


def test_lars_steps_are_those_by_hand() -> None:
    weight, bias = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight, bias, unused], lr=0.5, momentum=0.9, weight_decay=0.1)
    weight.grad, bias.grad = torch.tensor([[0.7, 1.0], [2.0, 0.6]]), torch.tensor([1.0, -2.0])
    optimizer.step()
    # g + wd * w = [[1, 1], [2, 1]] of norm sqrt(7); ||w|| = 5; trust 1e-3
    first = 0.5 * 1e-3 * 5 / math.sqrt(7) * torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 0.0], [0.0, 4.0]]) - first)
    torch.testing.assert_close(bias.data, torch.tensor([0.5, 3.0]))  # neither decay nor trust
    assert torch.equal(unused, torch.ones(2, 2))
    before = weight.detach().clone()
    weight.grad, bias.grad = -0.1 * before, torch.zeros(2)  # cancels the decay: momentum alone moves the weights
    optimizer.step()
    torch.testing.assert_close(weight.data, before - 0.9 * first)
    torch.testing.assert_close(bias.data, torch.tensor([0.5, 3.0]) - 0.9 * torch.tensor([0.5, -1.0]))


LARS_RUN = tiny_spec(
    optimizer="lars", schedule="cosine", lr=6.4, weight_decay=1e-4, epochs=10, warmup_epochs=2, lr_drops=[]
)
Step = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]  # (parameters, gradients, rate) to parameters


def written_out(parameters: list[Tensor]) -> Step:
    """LARS one number at a time: SimCLRv2's, whose rate is inside the velocity and whose norm has the decay in it."""
    velocities = [[0.0] * p.numel() for p in parameters]

    def step(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> list[Tensor]:
        moved = []
        for p, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
            w, g = p.flatten().tolist(), gradient.flatten().tolist()
            if p.ndim > 1:
                g = [x + 1e-4 * y for x, y in zip(g, w, strict=True)]
                trust = 0.001 * math.sqrt(sum(x * x for x in w)) / math.sqrt(sum(x * x for x in g))
                g = [trust * x for x in g]
            velocity[:] = [0.9 * v + lr * x for v, x in zip(velocity, g, strict=True)]
            w = [x - v for x, v in zip(w, velocity, strict=True)]
            moved.append(torch.tensor(w, dtype=torch.float64).view_as(p))
        return moved

    return step


def by_optax(parameters: list[Tensor]) -> Step:
    """The LARS of optax, whose rate is a function of the step; biases and batch norm are masked."""
    jax = pytest.importorskip("jax", reason="optax, another library's LARS, is not installed: pip install optax")
    optax = pytest.importorskip("optax", reason="another library's LARS is not installed: pip install optax")
    jax.config.update("jax_enable_x64", True)
    schedule = jax.numpy.array(rates(LARS_RUN, 3))
    matrices = [p.ndim > 1 for p in parameters]
    lars = optax.lars(
        lambda step: schedule[step], 1e-4, matrices, trust_coefficient=0.001, trust_ratio_mask=matrices, momentum=0.9
    )
    state = lars.init([jax.numpy.array(p.numpy()) for p in parameters])

    def step(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> list[Tensor]:
        nonlocal state
        values, slopes = ([jax.numpy.array(x.numpy()) for x in xs] for xs in (parameters, gradients))
        changes, state = lars.update(slopes, state, values)
        return [torch.tensor(numpy.asarray(value + change)) for value, change in zip(values, changes, strict=True)]

    return step


@pytest.mark.parametrize("another", [written_out, by_optax])
def test_thirty_steps_of_lars_are_those_of_another(another: Callable[[list[Tensor]], Step]) -> None:
    """Two networks that each follow their own gradient, in float64, through a warm-up and a half cosine."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double()
    theirs = copy.deepcopy(ours)
    optimizer = build_optimizer(LARS_RUN, ours)
    step = another([p.detach() for p in theirs.parameters()])
    for i, lr in enumerate(rates(LARS_RUN, 3)):
        images, targets = torch.randn(8, 3, 6, 6).double(), torch.randn(8, 5).double()
        for network in (ours, theirs):
            network.zero_grad()
            (network(images) - targets).square().mean().backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        parameters = list(theirs.parameters())
        moved = step([p.detach() for p in parameters], [p.grad for p in parameters], lr)
        for p, value in zip(parameters, moved, strict=True):
            p.data = value
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=f"step {i}, {tuple(p.shape)}")
    assert i == 29


def test_lars_resumes_from_its_state() -> None:
    def run(steps: range, p: nn.Parameter, optimizer: LARS) -> None:
        for step in steps:
            p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()

    whole, part = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    run(range(4), whole, LARS([whole], lr=0.1))
    first = LARS([part], lr=0.1)
    run(range(2), part, first)
    second = LARS([part], lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(range(2, 4), part, second)
    assert torch.equal(part, whole)


def test_the_spec_chooses_the_optimiser_and_its_settings() -> None:
    spec = tiny_spec(optimizer="lars", lr=0.2, momentum=0.8, weight_decay=1e-4)
    optimizer = build_optimizer(spec, nn.Linear(2, 2))
    assert isinstance(optimizer, LARS)
    assert {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay", "trust")} == {
        "lr": 0.2,
        "momentum": 0.8,
        "weight_decay": 1e-4,
        "trust": 1e-3,
    }
