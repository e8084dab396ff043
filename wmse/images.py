"""Access to the images of a split: augmented views for pretraining, plain views for the evaluation.

Two sources with the same methods: `ArrayImages` (uint8 arrays, resident on a GPU when they fit, memory-mapped on
the CPU) and `FileImages` (folders of JPEGs of any size, decoded by threads while the device trains).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmse.config import RunSpec
from wmse.datasets import Source, Split
from wmse.datasets.decode import decode_image
from wmse.streams import stream
from wmse.views import ViewRecipe, draw_params, make_view, normalize, resize_center_crop
from wmse.views.params import on_device

RESIDENT_SHARE = 0.5  # Images stay on a GPU if they take at most this part of its free memory.
CHUNK = 64  # Images of about the same size are padded and augmented in batches of this many.


def view_recipe(spec: RunSpec, source: Source) -> ViewRecipe:
    """The distribution of a run's views."""
    return ViewRecipe(
        size=spec.view_size,
        crop_scale=spec.crop_scale,
        jitter=spec.jitter,
        jitter_p=spec.jitter_p,
        grayscale_p=spec.grayscale_p,
        flip_p=spec.flip_p,
        blur_p=spec.blur_p,
        blur_sigma=spec.blur_sigma,
        crop_first=spec.crop_first,
        mean=source.mean,
        std=source.std,
    )


def open_images(
    split: Split, source: Source, spec: RunSpec, device: torch.device, replayed: bool = False
) -> ArrayImages | FileImages:
    """The images of a split, in whichever form the benchmark is prepared; `close` ends their threads.

    replayed: as for `make_view`, where images of one size let it pay: a graph would serve one padded batch of files.
    """
    recipe = view_recipe(spec, source)
    if source.streamed:
        return FileImages(split.paths, recipe, spec.eval_resize, device)
    return ArrayImages(split.images, recipe, spec.eval_resize, device, replayed)


class ArrayImages:
    """Images of one size in one uint8 array (n, 3, h, w)."""

    def __init__(
        self,
        images: np.ndarray,
        recipe: ViewRecipe,
        eval_resize: int,
        device: torch.device,
        replayed: bool = False,
    ) -> None:
        self.recipe, self.device, self.replayed = recipe, device, replayed
        self.resize = eval_resize or recipe.size
        with warnings.catch_warnings():
            # torch knows no read-only memory and says so; these images are only ever read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            self.images = torch.from_numpy(images)
        if device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.images = self.images.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def prefetch(self, index: Tensor) -> None:
        """The images are in memory already."""

    def views(self, index: Tensor, d: int, seed: int, step: int) -> list[Tensor]:
        """d views of the images `index` (N,): d tensors (N, 3, H, W), drawn from the stream (seed, step)."""
        images = on_device(self.images[on_device(index, self.images.device)], self.device)
        h, w = images.shape[-2:]
        drawn = [draw_params(len(index), h, w, self.recipe, stream(seed, "views", step, view)) for view in range(d)]
        return [make_view(images, self.recipe, params, replayed=self.replayed) for params in drawn]

    def plain(self, batch: int = 1000) -> Iterator[Tensor]:
        """The un-augmented, normalised view of every image in order: tensors (<= batch, 3, H, W) on the device."""
        for start in range(0, len(self), batch):
            images = self.images[start : start + batch].to(self.device)
            pixels = resize_center_crop(images, self.resize, self.recipe.size)
            yield normalize(pixels, self.recipe.mean, self.recipe.std)

    def close(self) -> None:
        """There is nothing to end."""


class FileImages:
    """JPEG files of any size: decoded by threads ahead of the training, augmented in batches on the device."""

    def __init__(
        self, paths: list[Path], recipe: ViewRecipe, eval_resize: int, device: torch.device, threads: int | None = None
    ) -> None:
        self.paths, self.recipe, self.device = paths, recipe, device
        self.resize = eval_resize or recipe.size
        self.pool = ThreadPoolExecutor(threads or max(torch.get_num_threads(), 1))
        self.ahead: tuple[list[int], list[Future[Tensor]]] = ([], [])

    def __len__(self) -> int:
        return len(self.paths)

    def prefetch(self, index: Tensor) -> None:
        """Start decoding the images that the next call of `views` will ask for."""
        wanted = index.tolist()
        self.ahead = wanted, [self.pool.submit(decode, self.paths[i]) for i in wanted]

    def views(self, index: Tensor, d: int, seed: int, step: int) -> list[Tensor]:
        """As `ArrayImages.views`, with the same draws; DataError names a file that cannot be decoded."""
        if self.ahead[0] != index.tolist():
            self.prefetch(index)
        images = [future.result() for future in self.ahead[1]]
        self.ahead = ([], [])
        sizes = torch.tensor([image.shape[-2:] for image in images])
        drawn = [draw_params(len(index), *sizes.T, self.recipe, stream(seed, "views", step, view)) for view in range(d)]
        side = self.recipe.size
        views = [torch.empty(len(index), 3, side, side, device=self.device) for _ in range(d)]
        # One by one, they would cost the overhead of every operation; all together, the padding to the largest.
        for rows in _chunks_of_like_size(sizes, CHUNK):
            padded = on_device(_pad([images[i] for i in rows.tolist()]), self.device)
            place = on_device(rows, self.device)
            for out, params in zip(views, drawn, strict=True):
                out[place] = make_view(padded, self.recipe, params[rows], sizes[rows])
        return views

    def plain(self, batch: int = 100) -> Iterator[Tensor]:
        """As `ArrayImages.plain`, decoding the next batch while the current one is used."""
        ahead: list[Future[Tensor]] = []
        for start in range(0, len(self), batch):
            following = [self.pool.submit(self._plain_one, path) for path in self.paths[start : start + batch]]
            if ahead:
                yield self._collect(ahead)
            ahead = following
        if ahead:
            yield self._collect(ahead)

    def _plain_one(self, path: Path) -> Tensor:
        pixels = resize_center_crop(decode(path)[None], self.resize, self.recipe.size)
        return normalize(pixels, self.recipe.mean, self.recipe.std)

    def _collect(self, futures: list[Future[Tensor]]) -> Tensor:
        return torch.cat([future.result() for future in futures]).to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the threads; what was prefetched for a batch that nobody will ask for is not decoded."""
        self.pool.shutdown(cancel_futures=True)


def _chunks_of_like_size(sizes: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """The rows of (N, 2) heights and widths, sorted by them, in parts of `chunk`."""
    return (sizes[:, 0] * (sizes[:, 1].max() + 1) + sizes[:, 1]).argsort(stable=True).split(chunk)


def _pad(images: list[Tensor]) -> Tensor:
    """uint8 images (3, h, w) as one batch, with zeros below and to the right of the smaller ones."""
    h, w = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, h, w, dtype=torch.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def decode(path: Path) -> Tensor:
    """An image file as uint8 (3, h, w), RGB; DataError names a file that is broken or far too large."""
    return torch.from_numpy(decode_image(path, str(path))).permute(2, 0, 1).contiguous()
