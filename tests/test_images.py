"""Views and plain images from both kinds of sources: arrays, and folders of JPEGs of any size."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, PILToTensor, Resize

import wmse.images
from builders.runs import make_job, tiny_spec
from wmse.datasets import SOURCES, ArrayDataset, ArraySplit
from wmse.errors import DataError
from wmse.estimate.plan import feature_count
from wmse.features import raw_pixels
from wmse.images import ArrayImages, FileImages, open_images
from wmse.images import _chunks_of_like_size as like_size
from wmse.runs.evaluate import evaluate
from wmse.runtime import Runtime
from wmse.streams import stream
from wmse.training import Trainer, pretrain
from wmse.views import ViewRecipe, draw_params, make_view, normalize

CPU = torch.device("cpu")
RECIPE = ViewRecipe(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture
def jpegs(tmp_path: Path) -> ArraySplit:
    """72 JPEGs of different sizes, some grey, of three classes that differ in brightness."""
    rng = np.random.default_rng(0)
    paths, labels = [], np.arange(72) % 3
    for i, label in enumerate(labels):
        h, w = rng.integers(40, 90, 2)
        grey = i % 10 == 0
        pixels = rng.integers(60 * label, 60 * label + 100, (h, w) if grey else (h, w, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.JPEG")
        Image.fromarray(pixels).save(paths[-1])
    return ArraySplit(labels.astype(np.int64), files=paths)


def test_views_depend_on_seed_and_step_only(data: ArrayDataset) -> None:
    images, index = ArrayImages(data["train"].images, RECIPE, 0, CPU), torch.tensor([5, 3, 8])
    first = images.views(index, 2, seed=0, step=7)
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(first, images.views(index, 2, seed=0, step=7), strict=True))
    assert not torch.equal(first[0], first[1])
    for other in (images.views(index, 2, 1, 7), images.views(index, 2, 0, 8)):
        assert not torch.equal(first[0], other[0])
    assert [view.shape for view in first] == [(3, 3, 24, 24)] * 2


def test_more_positives_keep_the_first_ones(data: ArrayDataset) -> None:
    images, index = ArrayImages(data["train"].images, RECIPE, 0, CPU), torch.arange(4)
    two, four = images.views(index, 2, 0, 0), images.views(index, 4, 0, 0)
    assert torch.equal(two[0], four[0])
    assert torch.equal(two[1], four[1])


@pytest.mark.parametrize("threads", [1, 4])
def test_streamed_views_do_not_depend_on_the_number_of_threads(jpegs: ArraySplit, threads: int) -> None:
    index = torch.tensor([0, 9, 30])
    reference = FileImages(jpegs.files, RECIPE, 32, CPU, threads=2).views(index, 3, seed=0, step=1)
    views = FileImages(jpegs.files, RECIPE, 32, CPU, threads=threads).views(index, 3, seed=0, step=1)
    assert [view.shape for view in views] == [(3, 3, 24, 24)] * 3
    assert all(torch.equal(a, b) for a, b in zip(reference, views, strict=True))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_streamed_views_equal_those_of_each_image_alone(
    jpegs: ArraySplit, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of different sizes are padded to a common one: nothing of the padding may reach a view."""
    monkeypatch.setattr(wmse.images, "_chunks_of_like_size", lambda sizes, _: like_size(sizes, chunk))
    recipe = replace(RECIPE, blur_p=0.5, grayscale_p=0.3, jitter=(0.8, 0.8, 0.8, 0.2))
    index = torch.tensor([40, 3, 17, 60, 61, 8, 9])
    views = FileImages(jpegs.files, recipe, 32, CPU).views(index, 2, seed=3, step=5)
    images = [wmse.images.decode(jpegs.files[i]) for i in index.tolist()]
    heights, widths = torch.tensor([image.shape[1:] for image in images]).T
    for number, view in enumerate(views):
        params = draw_params(7, heights, widths, recipe, stream(3, "views", 5, number))
        for i, image in enumerate(images):
            alone = make_view(image[None], recipe, params[i : i + 1])
            torch.testing.assert_close(view[i : i + 1], alone, rtol=0, atol=1e-5)


def test_draws_for_images_of_one_size_are_those_for_many_sizes() -> None:
    one = draw_params(30, 40, 50, RECIPE, torch.Generator().manual_seed(1))
    many = draw_params(30, torch.full((30,), 40), torch.full((30,), 50), RECIPE, torch.Generator().manual_seed(1))
    for name in vars(one):
        assert torch.equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("limit", [1, 20_000, 1 << 30])
def test_reading_ahead_changes_no_bit_and_is_never_needed(
    jpegs: ArraySplit, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wmse.images, "AHEAD", limit)
    batches = torch.randperm(72, generator=torch.Generator().manual_seed(0)).split(6)
    one_by_one, ahead = (FileImages(jpegs.files, RECIPE, 32, CPU, threads=3) for _ in range(2))
    ahead.read_ahead(batches)
    for step, index in enumerate(batches):
        for a, b in zip(one_by_one.views(index, 2, 0, step), ahead.views(index, 2, 0, step), strict=True):
            assert torch.equal(a, b)
    ahead.read_ahead(batches)
    assert ahead.views(torch.tensor([70, 3]), 2, 0, 0)[0].shape == (2, 3, 24, 24)  # others than were announced
    ahead.read_ahead(batches)
    with pytest.raises(ValueError, match="announced"):
        ahead.views(batches[0].flip(0)[[5, 0]], 2, 0, 0)  # one that was, and one that was not


def test_a_broken_image_that_was_read_ahead_is_named_when_it_is_needed(jpegs: ArraySplit) -> None:
    jpegs.files[4].write_bytes(b"not a JPEG")
    images = FileImages(jpegs.files, RECIPE, 32, CPU)
    images.read_ahead(torch.tensor([[3], [4]]))
    images.views(torch.tensor([3]), 2, 0, 0)
    with pytest.raises(DataError, match=r"4\.JPEG: not a readable image"):
        images.views(torch.tensor([4]), 2, 0, 0)


def test_plain_streamed_images_equal_torchvisions_evaluation_transform(jpegs: ArraySplit) -> None:
    images = torch.cat(list(FileImages(jpegs.files, RECIPE, 32, CPU).plain(batch=7)))
    transform = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(24), PILToTensor()])
    normalise = Normalize(RECIPE.mean, RECIPE.std)
    for path, image in zip(jpegs.files, images, strict=True):
        expected = normalise(transform(Image.open(path).convert("RGB")).float() / 255)
        error = (image - expected).abs() * torch.tensor(RECIPE.std).view(3, 1, 1) * 255
        assert error.mean() < 0.1  # grey levels
        assert error.max() < 2


@pytest.mark.parametrize("size", [16, 32, 40])
def test_without_a_size_of_their_own_plain_images_have_that_of_the_views(
    size: int, data: ArrayDataset, tmp_path: Path
) -> None:
    arrays = data["test"].images
    recipe = replace(RECIPE, size=size)
    whole, resized = (
        torch.cat(list(ArrayImages(arrays, recipe, resize, CPU).plain(batch=7))) for resize in (0, recipe.size)
    )
    assert whole.shape == (len(arrays), 3, size, size)
    assert torch.equal(whole, resized)
    if size == arrays.shape[-1]:  # then no level changes
        assert torch.equal(whole, normalize(torch.from_numpy(arrays).float(), recipe.mean, recipe.std))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, arrays, strict=False):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    assert torch.equal(torch.cat(list(FileImages(paths, recipe, 0, CPU).plain())), whole[:3])


def test_a_run_is_probed_at_the_size_it_was_trained_at(data: ArrayDataset) -> None:
    spec = tiny_spec("pixels", view_size=16, eval_resize=0)
    images = open_images(data["test"], SOURCES["cifar10"], spec, CPU)
    assert raw_pixels(images).shape == (60, feature_count(spec)) == (60, 3 * 16 * 16)


def test_closed_images_decode_no_more(jpegs: ArraySplit, monkeypatch: pytest.MonkeyPatch) -> None:
    images, decoded, release = FileImages(jpegs.files, RECIPE, 32, CPU, threads=1), [], threading.Event()

    def decode(path: Path, read: object) -> torch.Tensor:
        decoded.append(path)
        release.wait(60)
        return torch.empty(3, 8, 8)

    monkeypatch.setattr(wmse.images, "decode", decode)
    images.read_ahead([torch.arange(5)])
    while not decoded:
        time.sleep(0.001)
    threading.Timer(0.05, release.set).start()
    images.close()
    assert decoded == jpegs.files[:1]  # the others wait for the only thread
    with pytest.raises(RuntimeError, match="after shutdown"):
        images.read_ahead([torch.arange(5)])


def test_a_broken_image_is_named(jpegs: ArraySplit) -> None:
    jpegs.files[4].write_bytes(b"not a JPEG")
    with pytest.raises(DataError, match=r"4\.JPEG: not a readable image"):
        FileImages(jpegs.files, RECIPE, 32, CPU).views(torch.tensor([4]), 2, 0, 0)


def test_a_streamed_benchmark_goes_through_pretraining_and_evaluation(jpegs: ArraySplit, tmp_path: Path) -> None:
    spec = tiny_spec(
        "wmse-2", benchmark="imagenet100", batch_size=24, w_size=12, view_size=16, eval_resize=20, blur_p=0.5, epochs=2
    )
    assert SOURCES[spec.benchmark].streamed
    data, runtime = ArrayDataset(pretrain=jpegs, train=jpegs, test=jpegs), Runtime(CPU, channels_last=False)
    assert isinstance(open_images(jpegs, SOURCES[spec.benchmark], spec, CPU), FileImages)
    pretrain(make_job(spec, data, tmp_path / "run", runtime))
    result = evaluate(make_job(spec, data, tmp_path / "run", runtime))
    assert result["metrics"]["knn5_top1"] > 60  # three classes told apart by brightness
    assert result["evaluation"]["train_images"] == 72


def test_training_on_streamed_images_depends_neither_on_the_decoding_threads_nor_on_how_far_they_are_ahead(
    jpegs: ArraySplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(
        "wmse-2", benchmark="imagenet100", batch_size=24, w_size=12, view_size=16, eval_resize=20, blur_p=0.5, epochs=2
    )
    data = ArrayDataset(pretrain=jpegs, train=jpegs, test=jpegs)
    states = []
    for threads, limit in ((1, 1), (3, 100_000), (8, 1 << 30)):  # nothing, a batch and a half, everything
        monkeypatch.setattr(wmse.images, "AHEAD", limit)
        trainer = Trainer(make_job(spec, data, tmp_path / str(threads), Runtime(CPU)))
        trainer.images = FileImages(jpegs.files, trainer.images.recipe, 20, CPU, threads=threads)
        trainer.run()
        states.append(trainer.method.state_dict())
    for other in states[1:]:
        assert [name for name in other if not torch.equal(other[name], states[0][name])] == []


@pytest.mark.parametrize("rows", [slice(2, 5), torch.tensor([6, 0, 3])])
def test_a_share_of_a_batch_has_the_views_of_the_whole(
    data: ArrayDataset, jpegs: ArraySplit, rows: slice | torch.Tensor
) -> None:
    """Also of files, whose sizes a process knows of its own share only."""
    index = torch.tensor([40, 3, 17, 60, 61, 8, 9])
    for images in (ArrayImages(data["train"].images, RECIPE, 0, CPU), FileImages(jpegs.files, RECIPE, 32, CPU)):
        whole, share = images.views(index, 2, 0, 1), images.views(index, 2, 0, 1, rows)
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, share, strict=True))
        every, part = torch.cat(list(images.plain(5))), torch.cat(list(images.plain(5, slice(10, 31))))
        assert torch.equal(every[10:31], part)
