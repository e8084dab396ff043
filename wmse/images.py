"""Access to the images of a split: augmented views for pretraining, plain views for the evaluation.

Two sources with the same methods: `ArrayImages` (uint8 arrays, resident on a GPU when they fit, memory-mapped on
the CPU) and `FileImages` (folders of JPEGs of any size, decoded by threads while the device trains).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from wmse.config import RunSpec
from wmse.datasets import Source, Split
from wmse.datasets.decode import decode_image
from wmse.datasets.splits import ImageFile
from wmse.errors import DataError
from wmse.read_ahead import ReadAhead
from wmse.streams import stream
from wmse.views import ViewRecipe, draw_params, make_view, normalize, resize_center_crop, resize_center_crop_one
from wmse.views.params import on_device

RESIDENT_SHARE = 0.5  # Images stay on a GPU if they take at most this part of its free memory.
AHEAD = 2 << 30  # Bytes of decoded images that wait for the training: some 3,800 photographs of ImageNet.
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
        return FileImages(split.files, recipe, spec.eval_resize, device, read=source.decode)
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

    def read_ahead(self, batches: Iterable[Tensor], limit: int = AHEAD) -> None:
        """The images are in memory already."""

    def views(self, index: Tensor, d: int, seed: int, step: int, rows: slice | Tensor = slice(None)) -> list[Tensor]:
        """d views of the images `index` (N,): d tensors (N, 3, H, W), drawn from the stream (seed, step).

        With `rows` only those of the N are made, in that order, from what is drawn for all.
        """
        images = on_device(self.images[on_device(index[rows], self.images.device)], self.device)
        h, w = images.shape[-2:]
        drawn = [draw_params(len(index), h, w, self.recipe, stream(seed, "views", step, view)) for view in range(d)]
        return [make_view(images, self.recipe, params[rows], replayed=self.replayed) for params in drawn]

    def plain(self, batch: int = 1000, part: slice = slice(None)) -> Iterator[Tensor]:
        """The un-augmented, normalised view of every image in order: tensors (<= batch, 3, H, W) on the device.

        `part` restricts them to some images, with a step of 1.
        """
        for images in self.images[part].split(batch):
            images = images.to(self.device)
            pixels = resize_center_crop(images, self.resize, self.recipe.size)
            yield normalize(pixels, self.recipe.mean, self.recipe.std)

    def close(self) -> None:
        """There is nothing to end."""


class FileImages:
    """Image files of any size: decoded by threads ahead of the training, augmented in batches on the device.

    `read` makes uint8 (h, w, 3) of a file's content and its name.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        recipe: ViewRecipe,
        eval_resize: int,
        device: torch.device,
        threads: int | None = None,
        read: Callable[[bytes, str], np.ndarray] = decode_image,
    ) -> None:
        self.files, self.recipe, self.device, self.read = files, recipe, device, read
        self.resize = eval_resize or recipe.size
        self.threads = threads or max(torch.get_num_threads(), 1)
        self.pool = ThreadPoolExecutor(self.threads)
        self.read_ahead([])

    def __len__(self) -> int:
        return len(self.files)

    def read_ahead(self, batches: Iterable[Tensor], limit: int = AHEAD) -> None:
        """Begin to decode the images (N,) of these batches, for which `views` is going to ask in this order.

        limit: no further one is begun while so many bytes of decoded images wait.
        """
        items = (i for index in batches for i in index.tolist())
        self.ahead = ReadAhead(self.pool, self.threads, self._decode, items, limit)

    def views(self, index: Tensor, d: int, seed: int, step: int, rows: slice | Tensor = slice(None)) -> list[Tensor]:
        """As `ArrayImages.views`, with the same draws; DataError names a file that cannot be decoded."""
        own = index[rows]
        wanted = own.tolist()
        if not self.ahead.begins_with(wanted[0]):  # nobody has announced them
            self.ahead.close()
            self.read_ahead([own])
        images = [self.ahead.take(i) for i in wanted]
        sizes = torch.tensor([image.shape[-2:] for image in images])
        # The numbers that are drawn for an image do not depend on its size, so that of the others can be anything.
        every = torch.ones(len(index), 2, dtype=torch.int64)
        every[rows] = sizes
        drawn = [
            draw_params(len(index), *every.T, self.recipe, stream(seed, "views", step, view))[rows] for view in range(d)
        ]
        side = self.recipe.size
        views = [torch.empty(len(own), 3, side, side, device=self.device) for _ in range(d)]
        # One by one, they would cost the overhead of every operation; all together, the padding to the largest.
        for chunk in _chunks_of_like_size(sizes, CHUNK):
            padded = on_device(_pad([images[i] for i in chunk.tolist()]), self.device)
            place = on_device(chunk, self.device)
            for out, params in zip(views, drawn, strict=True):
                out[place] = make_view(padded, self.recipe, params[chunk], sizes[chunk])
        return views

    def plain(self, batch: int = 100, part: slice = slice(None)) -> Iterator[Tensor]:
        """As `ArrayImages.plain`, decoding the next images while the current ones are used."""
        every = range(len(self))[part]
        with closing(ReadAhead(self.pool, self.threads, self._plain_one, every, AHEAD)) as ahead:
            for start in range(0, len(every), batch):
                images = [ahead.take(i) for i in every[start : start + batch]]
                yield torch.cat(images).to(self.device, non_blocking=True)

    def _decode(self, i: int) -> Tensor:
        return decode(self.files[i], self.read)

    def _plain_one(self, i: int) -> Tensor:
        pixels = resize_center_crop_one(self._decode(i), self.resize, self.recipe.size)
        return normalize(pixels, self.recipe.mean, self.recipe.std)

    def close(self) -> None:
        """End the threads; images that nobody will ask for are not decoded."""
        self.ahead.close()
        self.pool.shutdown(cancel_futures=True)


def _chunks_of_like_size(sizes: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """The rows of (N, 2) heights and widths, sorted by them, in parts of `chunk`."""
    return (sizes[:, 0] * (sizes[:, 1].max() + 1) + sizes[:, 1]).argsort(stable=True).split(chunk)


def _pad(images: list[Tensor]) -> Tensor:
    """uint8 images (3, h, w) as one batch, with zeros below and to the right of the smaller ones."""
    h, w = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = np.zeros((len(images), h, w, 3), np.uint8)  # as images are decoded, so that whole lines are copied
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0).numpy()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def decode(file: ImageFile, read: Callable[[bytes, str], np.ndarray] = decode_image) -> Tensor:
    """An image file as uint8 (3, h, w), RGB; DataError names a file that is gone, broken or far too large."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}: restore it from the original archive") from error
    return torch.from_numpy(read(content, str(file))).permute(2, 0, 1)
