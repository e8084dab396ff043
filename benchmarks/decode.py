"""JPEG files to batches, per core: this package from folders and packed, the bare decoder, torchvision's DataLoader."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import Table, alternate, ratio
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from views import MEAN, STD
from wmse.datasets.pack import Pack, write_pack
from wmse.datasets.splits import ImageFile
from wmse.images import FileImages, _pad
from wmse.views import ViewRecipe

BATCH = 32
D = 4  # views of an image, as in the recipes of W-MSE 4
QUALITY = 97  # gives files of about 100 kB; those of ImageNet have 110 on average
RECIPE = ViewRecipe(224, (0.08, 1), jitter=(0.8, 0.8, 0.8, 0.2), grayscale_p=0.2, blur_p=0.5, mean=MEAN, std=STD)


def write_photos(folder: Path, n: int) -> list[Path]:
    """n parts of 500 x 375 pixels of the two photographs that come with scikit-learn."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    paths = [folder / "n00000000" / f"{i:04d}.JPEG" for i in range(n)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        top, left = rng.integers(0, 427 - 375 + 1), rng.integers(0, 640 - 500 + 1)
        part = photos[i % 2][top : top + 375, left : left + 500]
        Image.fromarray(part[:, ::-1] if rng.random() < 0.5 else part).save(path, quality=QUALITY)
    return paths


def pipeline(crop_first: bool) -> Callable[[Image.Image], list[torch.Tensor]]:
    """`RECIPE` in torchvision's classes and PIL's blur, D times."""
    color = [
        v1.RandomApply([v1.ColorJitter(*RECIPE.jitter)], p=RECIPE.jitter_p),
        v1.RandomGrayscale(RECIPE.grayscale_p),
    ]
    crop = [
        v1.RandomResizedCrop(224, RECIPE.crop_scale, interpolation=v1.InterpolationMode.BICUBIC),
        v1.RandomHorizontalFlip(),
    ]
    blur = v1.RandomApply([v1.GaussianBlur(23, RECIPE.blur_sigma)], p=RECIPE.blur_p)
    order = [*crop, *color] if crop_first else [*color, *crop]
    view = v1.Compose([*order, blur, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    return lambda image: [view(image) for _ in range(D)]


def measure(device: torch.device) -> list[Table]:
    """On the CPU alone: what a GPU does with the decoded images is measured by the views."""
    table = Table(
        "Decoding",
        ["what", "ours, images/s", "packed, images/s", "ImageFolder and DataLoader / ours", "bare decoder / ours"],
        "JPEG files of 500 x 375 pixels from two photographs, {kB:.0f} kB on average and in the page cache, to batches"
        f" of {BATCH}. All threads and processes of a contestant share one core; each has one worker. The bare decoder"
        f" is simplejpeg on content in memory. Views: {D} of each image, of 224 pixels, as in the recipes of W-MSE 4 in"
        " Table 3 (crop first) and in Table 2 (colours first).",
    )
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_photos(Path(folder), 8 * BATCH)
            table.note = table.note.format(kB=statistics.mean(path.stat().st_size for path in paths) / 1e3)
            pack = Path(folder) / "photos.pack"
            packed = Pack(pack, write_pack(pack, paths), [path.name for path in paths])
            table.rows.append(_decoding(paths, packed))
            for crop_first in (True, False):
                table.rows.append(_views(paths, packed, crop_first))
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    return [table]


def _decoding(paths: list[Path], packed: Pack) -> list[str]:
    content = [path.read_bytes() for path in paths]
    loader = _loader(paths, v1.PILToTensor())
    order = torch.arange(len(paths)).split(BATCH)

    def decode(files: list[ImageFile]) -> None:
        with closing(FileImages(files, RECIPE, 256, torch.device("cpu"), threads=1)) as images:
            images.read_ahead(order)
            for index in order:
                _pad([images.ahead.take(i) for i in index.tolist()])

    contestants = {
        "folder": lambda: decode(paths),
        "packed": lambda: decode(packed),
        "loader": lambda: [batch for batch, _ in loader],
        "bare": lambda: [simplejpeg.decode_jpeg(one, "RGB") for one in content],
    }
    folder, pack, theirs, bare = alternate(contestants, 7).values()
    return ["decoding alone", *_rates(len(paths), folder, pack), ratio(theirs, folder), ratio(bare, folder)]


def _views(paths: list[Path], packed: Pack, crop_first: bool) -> list[str]:
    n = 2 * BATCH
    recipe = ViewRecipe(**{**vars(RECIPE), "crop_first": crop_first})
    loader = _loader(paths[:n], pipeline(crop_first))
    order = torch.arange(n).split(BATCH)

    def views(files: list[ImageFile]) -> None:
        with closing(FileImages(files, recipe, 256, torch.device("cpu"), threads=1)) as images:
            images.read_ahead(order)
            for step, index in enumerate(order):
                images.views(index, D, 0, step)

    contestants = {
        "folder": lambda: views(paths),
        "packed": lambda: views(packed),
        "loader": lambda: [batch for batch, _ in loader],
    }
    folder, pack, theirs = alternate(contestants, 3).values()
    name = f"decoding and {D} views, {'crop' if crop_first else 'colours'} first"
    return [name, *_rates(n, folder, pack), ratio(theirs, folder), "—"]


def _loader(paths: list[Path], transform: Callable[[Image.Image], object]) -> DataLoader:
    images = ImageFolder(paths[0].parents[1], transform)
    images.samples = images.samples[: len(paths)]
    return DataLoader(images, BATCH, num_workers=1, persistent_workers=True, multiprocessing_context="fork")


def _rates(n: int, *seconds: list[float]) -> list[str]:
    return [f"{n / statistics.median(times):,.0f}" for times in seconds]
