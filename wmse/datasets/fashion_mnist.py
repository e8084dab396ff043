"""A sample of Fashion-MNIST that comes with this package: real images for tests and a first run without a network.

10,000 training and 2,000 test images, chosen by tools/sample_fashion_mnist.py. Grey images of 28x28 pixels are shown
to the encoder as RGB of 32x32: two black pixels on each side, the grey value in all three channels.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from wmse.datasets.archives import RawFiles
from wmse.datasets.source import Archive, Chunk, Rows, Source
from wmse.errors import DataError

_BORDER = 2
_LARGEST = 1 << 26  # The most pixels of a file; the 60,000 images of the whole Fashion-MNIST have 47 million.


def parse(source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield the training and the test images; DataError as of `read_originals`."""
    for array, images, labels in read_originals(files):
        yield array, as_rgb(images), labels


def read_originals(files: RawFiles) -> Iterator[Chunk]:
    """The grey images (n, 28, 28) of "train" and "test"; DataError naming a file that is damaged or not proper IDX."""
    for prefix, array in (("train", "train"), ("t10k", "test")):
        images_name = f"{prefix}-images-idx3-ubyte.gz"
        images = read_idx(files, images_name, 3)
        labels = read_idx(files, f"{prefix}-labels-idx1-ubyte.gz", 1)
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise DataError(f"{files.where(images_name)}: shape {images.shape}, expected ({len(labels)}, 28, 28)")
        yield array, images, labels.astype(np.int64)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Grey uint8 (n, 28, 28) as uint8 (n, 3, 32, 32)."""
    padded = np.pad(images, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    return np.repeat(padded[:, None], 3, axis=1)


def read_idx(files: RawFiles, name: str, dimensions: int) -> np.ndarray:
    """A gzipped IDX file of bytes: two zero bytes, type 8, the number of dimensions, their big-endian sizes, data."""
    where = files.where(name)
    try:
        with files.open(name) as file, gzip.open(file) as content:
            head = content.read(4 + 4 * dimensions)
            if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) < 4 + 4 * dimensions:
                raise DataError(f"{where}: not an IDX file of bytes with {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            count = math.prod(shape)
            if count > _LARGEST:
                raise DataError(f"{where}: the header promises {shape}, where at most {_LARGEST:,} values make sense")
            values = content.read(count + 1)  # one more shows that there is more, and goes no further
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error})") from error
    if len(values) != count:
        found = f"more than {count:,}" if len(values) > count else f"{len(values):,}"
        raise DataError(f"{where}: {found} values, the header promises {shape}")
    return np.frombuffer(values, np.uint8).reshape(shape)


_TRAIN = Rows("train", 0, 10_000, 1000)

FASHION_MNIST = Source(
    name="fashion_mnist",
    title="Fashion-MNIST (sample)",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    licence="MIT, Copyright (c) 2017 Zalando SE",
    num_classes=10,
    image_size=32,
    # Over the training images of this sample as they are shown: padded, with the grey value in every channel.
    mean=(0.2180, 0.2180, 0.2180),
    std=(0.3314, 0.3314, 0.3314),
    splits={"pretrain": _TRAIN, "train": _TRAIN, "test": Rows("test", 0, 2_000, 200)},
    embedded=Archive(
        folder="fashion_mnist_sample",
        form="idx",
        files={
            "train-labels-idx1-ubyte.gz": "sha256:8107d5470b3eb7bc367a4944d421c944fe6f1594694bd7c8f77699850aee746e",
            "train-images-idx3-ubyte.gz": "sha256:cce610f24474e2e14d3e4723ea18426e5c7e1b79c6c96ef9f96adb19673ff73b",
            "t10k-labels-idx1-ubyte.gz": "sha256:d1c3a7f5a2bb822b669693a7c42f02a1d79b9811ca401b22af9e487996029102",
            "t10k-images-idx3-ubyte.gz": "sha256:6cbaf7253ac884784e5c2f5fcfc211dfc11171c1c965b611b65f1323f5d6aaee",
        },
    ),
    parse=parse,
)

SOURCES = (FASHION_MNIST,)
