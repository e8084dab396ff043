"""STL-10 from its binary release: 96x96 pixels stored column by column, labels 1 to 10."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wmse.datasets.archives import RawFiles
from wmse.datasets.source import UNLABELED, Archive, Chunk, Rows, Source
from wmse.errors import DataError

_SIDE = 96
_IMAGE = 3 * _SIDE * _SIDE
_CHUNK = 100  # Images are read in blocks of this many: 2.8 MB stay in the processor's cache until they are stored.


def parse(source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield the labeled training images, then the unlabeled ones (array "train"), then the test images ("test").

    Raises DataError naming the file if a size is wrong or a label lies outside 1..10.
    """
    for images_name, labels_name, array in (
        ("train_X.bin", "train_y.bin", "train"),
        ("unlabeled_X.bin", None, "train"),
        ("test_X.bin", "test_y.bin", "test"),
    ):
        size = files.size(images_name)
        if size == 0 or size % _IMAGE:
            raise DataError(f"{files.where(images_name)}: {size:,} bytes is no multiple of {_IMAGE:,}: truncated?")
        count = size // _IMAGE
        if count > source.rows(array):
            raise DataError(f"{files.where(images_name)}: {count:,} images, expected at most {source.rows(array):,}")
        labels = np.full(count, UNLABELED) if labels_name is None else _read_labels(files, labels_name, count)
        yield from _read_images(files, images_name, array, labels)


def _read_labels(files: RawFiles, name: str, count: int) -> np.ndarray:
    if files.size(name) != count:
        raise DataError(f"{files.where(name)}: {files.size(name):,} labels for {count:,} images")
    labels = np.frombuffer(files.read(name, count), np.uint8)
    if not 1 <= labels.min() <= labels.max() <= 10:
        raise DataError(f"{files.where(name)}: labels must lie in 1..10, found {labels.min()}..{labels.max()}")
    return labels.astype(np.int64) - 1


def _read_images(files: RawFiles, name: str, array: str, labels: np.ndarray) -> Iterator[Chunk]:
    with files.open(name) as file:
        for start in range(0, len(labels), _CHUNK):
            chunk = labels[start : start + _CHUNK]
            content = file.read(len(chunk) * _IMAGE)
            if len(content) != len(chunk) * _IMAGE:
                raise DataError(f"{files.where(name)}: ends after {start:,} of {len(labels):,} images")
            columns_first = np.frombuffer(content, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
            yield array, columns_first.swapaxes(2, 3), chunk


STL10 = Source(
    name="stl10",
    title="STL-10",
    homepage="https://cs.stanford.edu/~acoates/stl10/",
    licence="images from ImageNet under its terms: non-commercial research and education",
    num_classes=10,
    image_size=_SIDE,
    mean=(0.43, 0.42, 0.39),
    std=(0.27, 0.26, 0.27),
    splits={
        "pretrain": Rows("train", 0, 105_000),
        "train": Rows("train", 0, 5_000, 500),
        "test": Rows("test", 0, 8_000, 800),
    },
    archives=(
        Archive(
            name="stl10_binary.tar.gz",
            size=2_640_397_119,
            digest="md5:91f7769df0f17e558f3565bffb0c7dfb",  # as in torchvision
            # Two hosts of the same university; no copy elsewhere with the same bytes is known.
            urls=(
                "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            ),
            folder="stl10_binary",
            form="binary",
            files={  # as in torchvision
                "train_X.bin": "md5:918c2871b30a85fa023e0c44e0bee87f",
                "train_y.bin": "md5:5a34089d4802c674881badbb80307741",
                "unlabeled_X.bin": "md5:5242ba1fed5e4be9e1e742405eb56ca4",
                "test_X.bin": "md5:7f263ba9f9e0b06b93213547f721ac82",
                "test_y.bin": "md5:36f9794fa4beb8a2c72628de14fa638e",
            },
        ),
    ),
    parse=parse,
)

SOURCES = (STL10,)
