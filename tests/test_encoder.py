"""The encoder against torchvision's ResNet, the projection head, and how views pass through both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from builders.runs import tiny_spec
from builders.tensors import seeded
from wmse.encoder import STEMS, Encoder, Subsampled, projection_head
from wmse.methods import build_encoder, build_method, embed
from wmse.methods.simclr import SimCLR


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 1), ("small", 2), ("imagenet", 4)])
@pytest.mark.parametrize(("arch", "features"), [("resnet18", 32), ("resnet50", 128)])
def test_stems_shrink_the_image_as_the_paper_says(stem: str, stride: int, arch: str, features: int) -> None:
    encoder = Encoder(arch, stem, width=4).eval()
    assert encoder.features == features
    assert encoder(noise(2, 3, 32, 32)).shape == (2, features)
    seen: list[torch.Size] = []
    encoder.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    encoder(noise(2, 3, 32, 64))
    assert seen == [(2, 4, 32 // stride, 64 // stride)]


def test_a_narrow_encoder_computes_its_strided_shortcuts_as_any_other() -> None:
    narrow = Encoder(width=4)
    found = [module for module in narrow.modules() if isinstance(module, Subsampled)]
    assert len(found) == 1  # the other shortcuts have at least 8 channels
    conv, x = found[0].double(), noise(3, 4, 7, 8).double().requires_grad_()
    weights = noise(3, 8, 4, 4).double()
    plain = nn.functional.conv2d(x, conv.weight, stride=2)
    torch.testing.assert_close(conv(x), plain)
    expected = torch.autograd.grad((plain * weights).sum(), (x, conv.weight))
    torch.testing.assert_close(torch.autograd.grad((conv(x) * weights).sum(), (x, conv.weight)), expected)


def adapted(stem: str) -> nn.Module:
    """torchvision's ResNet-18 with the paper's stem and without its classifier."""
    network = resnet18()
    if stem != "imagenet":
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    if stem == "cifar":
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize("stem", STEMS)
def test_the_standard_width_is_torchvisions_network(stem: str) -> None:
    encoder, reference = Encoder("resnet18", stem), adapted(stem)
    assert encoder.features == 512
    for module in encoder.modules():  # statistics that differ from their start, so that every buffer counts
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    reference.load_state_dict(encoder.state_dict(), strict=True)
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images), reference.eval()(images))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", STEMS)
def test_a_narrow_network_keeps_the_names_and_scales_the_channels(arch: str, stem: str) -> None:
    with torch.device("meta"):
        wide = {"resnet18": resnet18, "resnet50": resnet50}[arch]().state_dict()
        narrow = Encoder(arch, stem, width=16).state_dict()
    assert list(narrow) == [name for name in wide if not name.startswith("fc.")]
    for name, value in narrow.items():
        expected = [size if size == 3 and dim else size // 4 for dim, size in enumerate(wide[name].shape[:2])]
        assert list(value.shape[:2]) == expected, name


@pytest.mark.parametrize(("arch", "stem"), [("resnet34", "cifar"), ("resnet18", "cifar10")])
def test_an_unknown_network_is_refused(arch: str, stem: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of resnet18, resnet50, or stem '\w+' of cifar, small, imagenet"):
        Encoder(arch, stem)


def test_narrow_and_standard_weights_start_at_the_same_scale() -> None:
    """torchvision's initialisation: normal of variance 2 / (k * k * output channels)."""
    torch.manual_seed(0)
    for width in (16, 64):
        for name, weight in Encoder("resnet18", "imagenet", width).named_parameters():
            if weight.ndim == 4:
                fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
                assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), (width, name)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_head_is_linear_batch_norm_relu_and_linear(layers: int) -> None:
    head = projection_head(12, 20, 6, layers)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1) + [nn.Linear]
    assert [type(module) for module in head] == kinds
    sizes = [(module.in_features, module.out_features) for module in head if isinstance(module, nn.Linear)]
    assert sizes == [(12, 6)] if layers == 1 else [(12, 20), *[(20, 20)] * (layers - 2), (20, 6)]
    assert all(module.bias is not None for module in head if isinstance(module, nn.Linear))
    assert head(noise(5, 12)).shape == (5, 6)


def test_batch_norm_of_the_encoder_sees_one_view_and_that_of_the_head_all_views() -> None:
    torch.manual_seed(0)
    encoder, head = Encoder(width=4), projection_head(32, 16, 6)
    views = [noise(8, 3, 8, 8, seed=i) * (i + 1) + i for i in range(3)]  # of different brightness
    found = embed(encoder, head, views)
    assert found.shape == (3, 8, 6)
    features = torch.cat([encoder(view) for view in views])
    torch.testing.assert_close(found, head(features).view(3, 8, 6))
    joined = head(encoder(torch.cat(views))).view(3, 8, 6)
    apart = torch.stack([head(encoder(view)) for view in views])
    assert (found - joined).abs().max() > 0.1
    assert (found - apart).abs().max() > 0.1


def test_running_statistics_are_updated_once_per_view() -> None:
    encoder, head = Encoder(width=4), projection_head(32, 16, 6)
    embed(encoder, head, [noise(8, 3, 8, 8, seed=i) for i in range(3)])
    assert encoder.bn1.num_batches_tracked == 3
    assert head[1].num_batches_tracked == 1


@pytest.mark.parametrize("label", ["wmse-2", "wmse-3", "simclr"])
def test_a_step_reaches_every_parameter(label: str) -> None:
    spec = tiny_spec(label)
    method = build_method(spec, 1)
    out = method([noise(64, 3, 8, 8, seed=i) for i in range(spec.d)], method.draw(64, seeded()))
    assert out.embeddings.shape == (spec.d, 64, spec.embedding)
    assert not out.embeddings.requires_grad
    assert (out.factorisations is None) == (label == "simclr")
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert all(p.grad.any() for p in method.encoder.parameters())


def test_simclr_ends_its_head_with_a_batch_norm() -> None:
    method = build_method(tiny_spec("simclr"), 1)
    assert isinstance(method, SimCLR)
    assert [type(m) for m in method.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]


def test_initial_weights_depend_on_the_seed_alone_and_are_the_encoders_own() -> None:
    spec = tiny_spec()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_method(spec, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    again, other = build_method(spec, 5).state_dict(), build_method(spec, 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])
    for name, value in build_encoder(spec, 5).state_dict().items():
        assert torch.equal(value, first[f"encoder.{name}"]), name
