"""The methods: their networks, what gets a gradient, and BYOL's target, against plain code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from builders.runs import tiny_spec
from builders.tensors import seeded
from wmse.config import RunSpec, experiments, trained_methods
from wmse.losses import nt_xent
from wmse.methods import Method, StepOutput, build_encoder, build_method
from wmse.methods.byol import BYOL
from wmse.whitening import whiten

LABELS = sorted({label for e in experiments().values() for label in e["methods"]} - {"random", "pixels"})


def views(d: int, n: int = 64, seed: int = 0) -> list[Tensor]:
    """Normalised images that differ from view to view."""
    generator = seeded(seed)
    common = torch.randn(n, 3, 8, 8, generator=generator)
    return [common + 0.3 * torch.randn(n, 3, 8, 8, generator=generator) for _ in range(d)]


def built(label: str, **overrides: object) -> tuple[RunSpec, Method]:
    spec = tiny_spec(label, **{"lr_drops": [], "w_size": 16, **overrides})
    return spec, build_method(spec, 0)


def take_step(method: Method, images: list[Tensor], generator: torch.Generator) -> StepOutput:
    """As the trainer calls a method."""
    return method(images, method.draw(len(images[0]), generator))


@pytest.mark.parametrize("label", LABELS)
def test_every_row_of_every_experiment_takes_a_step(label: str) -> None:
    spec, method = built(label)
    output = take_step(method, views(spec.d, spec.batch_size), seeded())
    output.loss.backward()
    method.after_step(0.5)
    assert output.loss.isfinite()
    assert output.embeddings.shape == (spec.d, spec.batch_size, spec.embedding)
    assert not output.embeddings.requires_grad
    assert (output.factorisations is None) == (spec.resolved_whitening != "cholesky")
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert method.encoder.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", trained_methods())
def test_the_weights_depend_on_the_seed_alone_and_the_encoder_is_build_encoders(method: str) -> None:
    spec = tiny_spec(method)
    torch.manual_seed(1)
    first = build_method(spec, 5).state_dict()
    torch.manual_seed(2)
    second, other = build_method(spec, 5).state_dict(), build_method(spec, 6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])
    encoder = build_encoder(spec, 5).state_dict()
    assert all(torch.equal(first[f"encoder.{name}"], value) for name, value in encoder.items())


# --- SimCLR on whitened vectors


@pytest.mark.parametrize("unit", [True, False])
def test_whitened_simclr_contrasts_the_whitened_vectors_of_the_whole_batch(unit: bool) -> None:
    """Each view's sub-batches are whitened alone; the negatives come from all of them."""
    spec, method = built("simclr@short-whitened" + ("" if unit else "-unnormalized"), w_iter=2)
    method = method.double()
    images = [view.double() for view in views(2, spec.batch_size)]
    reference = copy.deepcopy(method)
    loss = take_step(method, images, seeded(4)).loss
    v = reference.head(torch.cat([reference.encoder(view) for view in images])).unflatten(0, (2, -1))
    generator, losses = seeded(4), []
    for _ in range(2):
        z = torch.empty_like(v)
        for rows in torch.randperm(spec.batch_size, generator=generator).split(16):
            for view in range(2):
                z[view, rows] = whiten(v[view, rows])
        losses.append(nt_xent(z, 0.5, unit))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-12, msg=name)


# --- BYOL


def plain_byol_step(online: nn.Module, predictor: nn.Module, target: nn.Module, images: list[Tensor]) -> Tensor:
    """Both directions of one pair of views, written out."""
    p = [normalize(predictor(online(view)), dim=1) for view in images]
    with torch.no_grad():
        t = [normalize(target(view), dim=1) for view in images]
    return (2 - 2 * (p[0] * t[1]).sum(1)).mean() + (2 - 2 * (p[1] * t[0]).sum(1)).mean()


def test_byol_equals_a_plain_loop_over_thirty_steps() -> None:
    """Online networks by torch's Adam, the target by its average, every batch norm of both with its own statistics."""
    _, method = built("byol")
    method = method.double().train()
    online = nn.Sequential(copy.deepcopy(method.encoder), copy.deepcopy(method.head))
    predictor, target = copy.deepcopy(method.predictor), copy.deepcopy(online)
    parameters = [*online.parameters(), *predictor.parameters()]
    ours = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    plain = torch.optim.Adam(parameters, lr=1e-3)
    for step in range(30):
        images = [view.double() for view in views(2, 32, step)]
        loss = take_step(method, images, seeded()).loss
        expected = plain_byol_step(online, predictor, target, images)
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
        for optimizer, value in ((ours, loss), (plain, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        method.after_step(step / 30)
        decay = 1 - 0.01 * (math.cos(math.pi * step / 30) + 1) / 2
        with torch.no_grad():
            for t, p in zip(target.parameters(), online.parameters(), strict=True):
                t.copy_(t * decay + p * (1 - decay))
    for found, wanted in ((method.target, target), (nn.Sequential(method.encoder, method.head), online)):
        for (name, value), other in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-9, msg=name)


def test_the_target_starts_as_a_copy_follows_the_parameters_and_keeps_its_own_buffers() -> None:
    _, method = built("byol", target_decay=0.9)
    assert isinstance(method, BYOL)
    start = copy.deepcopy(method.target.state_dict())
    online = nn.Sequential(method.encoder, method.head).state_dict()
    assert all(torch.equal(start[name], online[name]) for name in start)
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.head.parameters()):
            p.add_(1)
        for name, buffer in method.encoder.named_buffers():
            if "running" in name:
                buffer.add_(7)
    method.after_step(0.0)  # decay 0.9: a tenth of the way
    moved = dict(method.target.named_parameters())
    for name, value in moved.items():
        torch.testing.assert_close(value, start[name] + 0.1, rtol=0, atol=1e-6)
    for name, value in method.target.named_buffers():
        assert torch.equal(value, start[name]), name
    method.after_step(0.5)  # decay 0.95
    for name, value in moved.items():
        torch.testing.assert_close(value, start[name] + 0.1 + 0.05 * 0.9, rtol=0, atol=1e-6)
    before = copy.deepcopy(method.target.state_dict())
    method.after_step(1.0)  # decay 1: it stands still
    assert all(torch.equal(value, before[name]) for name, value in method.target.state_dict().items())


def test_the_target_runs_in_train_mode_without_gradient() -> None:
    _, method = built("byol")
    method.train()
    before = copy.deepcopy(dict(method.target.named_buffers()))
    take_step(method, views(2, 32), seeded()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    changed = [name for name, value in method.target.named_buffers() if not torch.equal(value, before[name])]
    assert len(changed) == len(before)


@pytest.mark.parametrize("joint", [False, True])
def test_every_network_of_byol_sees_one_view_at_a_time_or_all(joint: bool) -> None:
    _, method = built("byol", joint_batch_norm=joint)
    sizes: dict[str, list[int]] = {}
    for name, module in method.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.register_forward_hook(lambda _, x, __, name=name: sizes.setdefault(name, []).append(len(x[0])))
    take_step(method, views(2, 24), seeded())
    assert {tuple(found) for found in sizes.values()} == {(48,) if joint else (24, 24)}
    assert {name.split(".")[0] for name in sizes} == {"encoder", "head", "predictor", "target"}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("label", ["wmse-4", "simclr"])
def test_the_encoders_batch_norm_sees_one_view_or_all_and_the_heads_all_of_them(label: str, joint: bool) -> None:
    spec, method = built(label, joint_batch_norm=joint)
    sizes: dict[str, list[int]] = {"encoder": [], "head": []}
    method.encoder.bn1.register_forward_hook(lambda _, x, __: sizes["encoder"].append(len(x[0])))
    method.head[1].register_forward_hook(lambda _, x, __: sizes["head"].append(len(x[0])))
    take_step(method, views(spec.d, 32), seeded())
    assert sizes == {"encoder": [32 * spec.d] if joint else [32] * spec.d, "head": [32 * spec.d]}


@pytest.mark.parametrize("label", ["wmse-2", "byol", "simclr"])
def test_views_seen_together_give_the_loss_of_one_network_on_all_of_them(label: str) -> None:
    """Against plain code in float64: the joined views through encoder and head, cut apart again for the loss."""
    spec, method = built(label, joint_batch_norm=True, head_batch_norm=True)
    images = [view.double() for view in views(2, 64)]
    reference = copy.deepcopy(method.double())
    v = reference.head(reference.encoder(torch.cat(images))).chunk(2)
    if label == "byol":
        with torch.no_grad():
            targets = reference.target(torch.cat(images)).chunk(2)
        p = [normalize(x) for x in reference.predictor(torch.cat(v)).chunk(2)]
        t = [normalize(x) for x in targets]
        expected = (2 - 2 * (p[0] * t[1]).sum(1)).mean() + (2 - 2 * (p[1] * t[0]).sum(1)).mean()
    elif label == "simclr":
        expected = nt_xent(torch.stack(v), spec.temperature, True)
    else:
        slices = torch.randperm(64, generator=seeded()).split(spec.w_size)
        pairs = [[normalize(whiten(x[rows])) for x in v] for rows in slices]
        expected = torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()
    loss = take_step(method, images, seeded()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-11, msg=name)


def test_whitening_undoes_a_batch_norm_at_the_end_of_the_head() -> None:
    losses = []
    for batch_norm in (False, True):
        _, method = built("wmse-2", head_batch_norm=batch_norm)
        assert isinstance(method.head[-1], nn.BatchNorm1d) == batch_norm
        losses.append(take_step(method.double(), [view.double() for view in views(2)], seeded()).loss)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)  # but for the batch norm's epsilon
