"""Views and plain images from both kinds of sources: arrays, and folders of JPEGs of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FakeData, tiny_spec
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, PILToTensor, Resize

from wmse.datasets import SOURCES
from wmse.errors import DataError
from wmse.evaluate import evaluate
from wmse.images import ArrayImages, FileImages, open_images
from wmse.pretrain import pretrain
from wmse.runtime import Runtime
from wmse.views import ViewRecipe

CPU = torch.device("cpu")
RECIPE = ViewRecipe(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@dataclass
class FileSplit:
    """The interface of `wmse.datasets.Split` for a streamed benchmark."""

    paths: list[Path]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


@pytest.fixture
def jpegs(tmp_path: Path) -> FileSplit:
    """72 JPEGs of different sizes, some grey, of three classes that differ in brightness."""
    rng = np.random.default_rng(0)
    paths, labels = [], np.arange(72) % 3
    for i, label in enumerate(labels):
        h, w = rng.integers(40, 90, 2)
        grey = i % 10 == 0
        pixels = rng.integers(60 * label, 60 * label + 100, (h, w) if grey else (h, w, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.JPEG")
        Image.fromarray(pixels).save(paths[-1])
    return FileSplit(paths, labels.astype(np.int64))


def test_views_depend_on_seed_and_step_only(data: FakeData) -> None:
    images, index = ArrayImages(data["train"].images, RECIPE, 0, CPU), torch.tensor([5, 3, 8])
    first = images.views(index, 2, seed=0, step=7)
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(first, images.views(index, 2, seed=0, step=7), strict=True))
    assert not torch.equal(first[0], first[1])
    for other in (images.views(index, 2, 1, 7), images.views(index, 2, 0, 8)):
        assert not torch.equal(first[0], other[0])
    assert [view.shape for view in first] == [(3, 3, 24, 24)] * 2


def test_more_positives_keep_the_first_ones(data: FakeData) -> None:
    images, index = ArrayImages(data["train"].images, RECIPE, 0, CPU), torch.arange(4)
    two, four = images.views(index, 2, 0, 0), images.views(index, 4, 0, 0)
    assert torch.equal(two[0], four[0])
    assert torch.equal(two[1], four[1])


@pytest.mark.parametrize("threads", [1, 4])
def test_streamed_views_do_not_depend_on_the_number_of_threads(jpegs: FileSplit, threads: int) -> None:
    index = torch.tensor([0, 9, 30])
    reference = FileImages(jpegs.paths, RECIPE, 32, CPU, threads=2).views(index, 3, seed=0, step=1)
    views = FileImages(jpegs.paths, RECIPE, 32, CPU, threads=threads).views(index, 3, seed=0, step=1)
    assert [view.shape for view in views] == [(3, 3, 24, 24)] * 3
    assert all(torch.equal(a, b) for a, b in zip(reference, views, strict=True))


def test_plain_streamed_images_equal_torchvisions_evaluation_transform(jpegs: FileSplit) -> None:
    images = torch.cat(list(FileImages(jpegs.paths, RECIPE, 32, CPU).plain(batch=7)))
    transform = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(24), PILToTensor()])
    normalise = Normalize(RECIPE.mean, RECIPE.std)
    for path, image in zip(jpegs.paths, images, strict=True):
        expected = normalise(transform(Image.open(path).convert("RGB")).float() / 255)
        error = (image - expected).abs() * torch.tensor(RECIPE.std).view(3, 1, 1) * 255
        assert error.mean() < 1  # grey levels; PIL rounds twice
        assert error.max() < 4


def test_a_broken_image_is_named(jpegs: FileSplit) -> None:
    jpegs.paths[4].write_bytes(b"not a JPEG")
    with pytest.raises(DataError, match=r"4\.JPEG: cannot be decoded"):
        FileImages(jpegs.paths, RECIPE, 32, CPU).views(torch.tensor([4]), 2, 0, 0)


def test_a_streamed_benchmark_goes_through_pretraining_and_evaluation(jpegs: FileSplit, tmp_path: Path) -> None:
    spec = tiny_spec(
        "wmse-2", benchmark="imagenet100", batch_size=24, w_size=12, view_size=16, eval_resize=20, blur_p=0.5, epochs=2
    )
    assert SOURCES[spec.benchmark].streamed
    data, runtime = FakeData(pretrain=jpegs, train=jpegs, test=jpegs), Runtime(CPU, channels_last=False)
    assert isinstance(open_images(jpegs, SOURCES[spec.benchmark], spec, CPU), FileImages)
    pretrain(spec, data, tmp_path / "run", runtime, log=lambda line: None)
    result = evaluate(spec, data, tmp_path / "run", runtime, log=lambda line: None)
    assert result["metrics"]["knn5_top1"] > 60  # three classes told apart by brightness
    assert result["evaluation"]["train_images"] == 72
