"""Which views a loss pairs: d of every image, and view i of image n with view j of the same image n."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import golden
from builders.runs import Double, make_job, tiny_spec
from builders.tensors import seeded
from wmse.datasets import ArrayDataset
from wmse.errors import TrainingError
from wmse.methods.byol import BYOL
from wmse.streams import stream
from wmse.training import Trainer
from wmse.views import normalize

LABELS = [label for label in golden.LABELS if " " not in label] + ["simclr-4", "byol-3"]
UNCHANGED = {"crop_scale": [1.0, 1.0], "jitter_p": 0.0, "grayscale_p": 0.0, "flip_p": 0.0, "view_size": 32}


def trainer_of(label: str, data: ArrayDataset, out: Path, **parameters: object) -> Trainer:
    """A trainer in float64, whose views show the whole image as it is."""
    spec = tiny_spec(label, lr_drops=[], w_size=16, eval_resize=32, **UNCHANGED, **parameters)
    trainer = Trainer(make_job(spec, data, out, Double(torch.device("cpu"))))
    if isinstance(trainer.method, BYOL):
        trainer.method.predictor = nn.Identity()  # so that a view's prediction is its own target
    return trainer


def check_pairing(trainer: Trainer, index: Tensor) -> None:
    """A step pairs the views of the images `index`, which are all alike, and no other pairing has as low a loss."""
    method, given = copy.deepcopy(trainer.method).train(), []
    trainer.method.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    loss = trainer.step(index).loss
    (views,) = given
    source = trainer.images.recipe
    images = normalize(trainer.images.images[index].float(), source.mean, source.std).double()
    assert len(views) == trainer.job.spec.d
    for view in views:
        torch.testing.assert_close(view, images, rtol=0, atol=1e-5)
    slices = method.draw(len(index), stream(0, "slices", 0))
    torch.testing.assert_close(loss, method(views, slices).loss, rtol=1e-9, atol=1e-12)
    orders = [[torch.randperm(len(index), generator=seeded(i + 9 * j)) for i in range(len(views))] for j in range(3)]
    shuffled = [method([view[o] for view, o in zip(views, order, strict=True)], slices).loss for order in orders]
    assert loss < 0.8 * min(shuffled)


def some_images(data: ArrayDataset) -> Tensor:
    return torch.randperm(len(data["pretrain"]), generator=seeded())[:64]


@pytest.mark.parametrize("label", LABELS)
def test_views_of_the_same_image_are_paired(label: str, data: ArrayDataset, tmp_path: Path) -> None:
    check_pairing(trainer_of(label, data, tmp_path), some_images(data))


@pytest.mark.parametrize("label", ["wmse-4", "simclr", "byol"])
def test_so_they_are_where_a_batch_norm_sees_them_together(label: str, data: ArrayDataset, tmp_path: Path) -> None:
    check_pairing(trainer_of(label, data, tmp_path, joint_batch_norm=True, head_batch_norm=True), some_images(data))


def rolled(views: list[Tensor]) -> list[Tensor]:
    return [*views[:-1], views[-1].roll(1, dims=0)]


@pytest.mark.parametrize("label", ["wmse-2", "wmse-4", "simclr", "byol"])
@pytest.mark.parametrize("place", ["data", "method"])
def test_a_shuffled_view_is_caught(label: str, place: str, data: ArrayDataset, tmp_path: Path) -> None:
    """Neither views in another order nor a method that pairs them in one passes the test above."""
    trainer = trainer_of(label, data, tmp_path)
    owner, name = (trainer.images, "views") if place == "data" else (trainer.method, "forward")
    original = getattr(owner, name)
    if place == "data":
        trainer.images.views = lambda *given: rolled(original(*given))
    else:
        trainer.method.forward = lambda views, slices: original(rolled(views), slices)
    with pytest.raises(AssertionError):
        check_pairing(trainer, some_images(data))


@pytest.mark.parametrize(("label", "views"), [("wmse-4", 2), ("wmse-2", 3), ("simclr", 1), ("byol", 4)])
def test_a_step_without_d_views_is_refused(label: str, views: int, data: ArrayDataset, tmp_path: Path) -> None:
    trainer = trainer_of(label, data, tmp_path)
    original = trainer.images.views
    trainer.images.views = lambda index, d, *given: original(index, views, *given)
    before = copy.deepcopy(trainer.method.state_dict())
    with pytest.raises(TrainingError, match=rf"step 0: the run has d = {trainer.job.spec.d} views, but {views} views"):
        trainer.step(some_images(data))
    assert all(torch.equal(value, before[key]) for key, value in trainer.method.state_dict().items())


def test_a_method_that_leaves_views_out_is_refused(data: ArrayDataset, tmp_path: Path) -> None:
    trainer = trainer_of("wmse-4", data, tmp_path)
    original = trainer.method.forward
    trainer.method.forward = lambda views, slices: original(views[:2], slices)
    with pytest.raises(TrainingError, match="the run has d = 4 views, but 2 of them had embeddings for the loss"):
        trainer.step(some_images(data))
