"""Garments: the Fashion-MNIST sample as coloured cut-outs at random places on noise (docs/garments.md).

Place, size, side, colour and brightness of a garment and the noise behind it say nothing about its class, so that
neither pixels nor random features solve it, and a representation has to be learned.
Whole numbers throughout: every processor makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wmse.datasets.archives import RawFiles
from wmse.datasets.fashion_mnist import FASHION_MNIST, read_originals
from wmse.datasets.source import Chunk, Source

SIDE = 32
SEEDS = {"train": 2021, "test": 7006346}
SIZES = (16, 28)  # of a garment, the smallest and the largest side in pixels
CELL = 2  # pixels of the side of a square of the noise
_CHUNK = 1000


def parse(source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield the images in chunks; DataError as of `read_originals`."""
    for array, images, labels in read_originals(files):
        draw = Draw(SEEDS[array])
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            yield array, cut_outs(images[rows], draw), labels[rows]


class Draw:
    """Whole numbers from a bit generator whose stream NumPy promises never to change."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 of this shape, each from `low` to `high`, both included."""
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(32)
        return low + (raw.astype(np.int64) % (high - low + 1)).reshape(shape)


def cut_outs(originals: np.ndarray, draw: Draw) -> np.ndarray:
    """Grey uint8 (n, 28, 28) as uint8 (n, 3, SIDE, SIDE): each garment in a colour of its own on noise."""
    n = len(originals)
    originals = np.where(draw(0, 1, n, 1, 1) > 0, originals[:, :, ::-1], originals)
    dye = draw(176, 255, n, 1, 1, 1) + draw(-12, 12, n, 1, 1, 3)
    grey = place(originals, draw)[..., None]
    garment = dye * (grey + 64) // 320
    opacity = np.minimum(4 * grey, 255)  # an original fades into black within its outermost pixels
    image = (opacity * garment + (255 - opacity) * noise(draw, n)) // 255
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2))


def noise(draw: Draw, n: int) -> np.ndarray:
    """Squares of independent colours, (n, SIDE, SIDE, 3): of one kind everywhere: no image is known by it."""
    side = SIDE // CELL
    squares = draw(16, 143, n, side, side, 1) + draw(-32, 32, n, side, side, 3)
    return squares.clip(0, 255).repeat(CELL, axis=1).repeat(CELL, axis=2)


def place(originals: np.ndarray, draw: Draw) -> np.ndarray:
    """The grey originals (n, 28, 28) in a size and a place of their own within black (n, SIDE, SIDE)."""
    n, inner = originals.shape[:2]
    size = draw(*SIZES, n, 1)
    y, x = (draw(0, 2**20, n, 1) % (SIDE - size + 1) for _ in range(2))
    black = np.pad(originals.astype(np.int64), ((0, 0), (1, 2), (1, 2)))

    def axis(start: np.ndarray) -> np.ndarray:
        """The places of the pixels' centres in `black`, in units of 1/256 of its pixels."""
        centre = (2 * (np.arange(SIDE) - start) + 1) * 128 * inner // size - 128
        return centre.clip(-256, 256 * inner) + 256

    return bilinear(black, np.arange(n)[:, None, None], axis(y)[:, :, None], axis(x)[:, None, :], 256)


def bilinear(values: np.ndarray, image: np.ndarray, y: np.ndarray, x: np.ndarray, unit: int) -> np.ndarray:
    """The values (n, h, w) of an image at y and x in units of 1 / `unit` of a pixel, rounded down."""
    (top, below), (left, right) = divmod(y, unit), divmod(x, unit)

    def line(row: np.ndarray) -> np.ndarray:
        return values[image, row, left] * (unit - right) + values[image, row, left + 1] * right

    return (line(top) * (unit - below) + line(top + 1) * below) // unit**2


GARMENTS = Source(
    name="garments",
    title="Garments",
    homepage=FASHION_MNIST.homepage,
    licence=FASHION_MNIST.licence,
    num_classes=10,
    image_size=SIDE,
    # Over the training images.
    mean=(0.3699, 0.3701, 0.3701),
    std=(0.1965, 0.1966, 0.1967),
    splits=FASHION_MNIST.splits,
    embedded=FASHION_MNIST.embedded,
    parse=parse,
)

SOURCES = (GARMENTS,)
