"""How a benchmark is described: where it comes from, what it must contain, and which function reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmse.datasets.decode import decode_image
from wmse.errors import DataError

if TYPE_CHECKING:
    from wmse.datasets.archives import RawFiles

UNLABELED = -1  # The label of an image that has none.

Log = Callable[[str], None]
# What a parser yields at a time, and changes no more: name of the stored array, uint8 images (n, 3, H, W), int64 labels
# (n,).
Chunk = tuple[str, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Archive:
    """One published form of a benchmark.

    `folder` is the official top folder inside the archive, which is also accepted in its extracted form. `files` maps
    the files that an extracted folder must have (relative to `folder`) to their "algorithm:hex" digest, or to "" where
    none is published. `size` is in bytes and `digest` is "algorithm:hex", both of the archive itself. What a form does
    not have is left out: a folder that nobody packs has no name, size and digest, and what nobody may hand on no URLs.
    """

    name: str = ""
    size: int = 0
    digest: str = ""
    urls: tuple[str, ...] = ()
    folder: str = ""
    form: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """A split: rows `start` to `stop` (exclusive) of the stored array `array`.

    `per_class` is the number of images that every class must have, None where classes differ in size or some rows are
    unlabeled.
    """

    array: str
    start: int
    stop: int
    per_class: int | None = None


@dataclass(frozen=True)
class Listing:
    """JPEG files of a benchmark that is read image by image: those of every stored array, with their class.

    They lie below the folder `raw`. Labels are positions in `classes`; an image of no class has none. `content` tells
    files of the same name and size apart, where that is known.
    """

    raw: Path
    classes: list[str]
    images: Mapping[str, list[tuple[str, Path]]]
    content: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A benchmark: where its files come from, what they must contain and how they are read.

    `image_size` is the side in pixels of the stored images (None: varies, images stay JPEG files); `mean` and `std`
    normalise pixels scaled to 0..1. Exactly one of `parse` (images become arrays) and `scan` (images stay
    files) is set. `embedded` is the folder of the raw files if they come with this package. `decode` reads the files of
    one whose images stay files. `own` describes a folder of somebody's own (own.py), and is kept in the prepared form.
    """

    name: str
    title: str
    homepage: str
    licence: str
    num_classes: int
    image_size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: Mapping[str, Rows]
    archives: tuple[Archive, ...] = ()
    embedded: Archive | None = None
    parse: Callable[[Source, RawFiles], Iterator[Chunk]] | None = field(default=None, repr=False)
    scan: Callable[[Source, Path, Log], Listing] | None = field(default=None, repr=False)
    decode: Callable[[bytes, str], np.ndarray] = field(default=decode_image, repr=False)
    own: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def labelled(self) -> bool:
        """Whether there are labels to evaluate an encoder with."""
        return "test" in self.splits

    @property
    def streamed(self) -> bool:
        """Whether images are read from JPEG files one by one instead of from one array."""
        return self.scan is not None

    def rows(self, array: str) -> int:
        """Number of rows that the stored array `array` must have."""
        return max(split.stop for split in self.splits.values() if split.array == array)

    def arrays(self) -> list[str]:
        """Names of the stored arrays, in the order of the splits."""
        return list(dict.fromkeys(split.array for split in self.splits.values()))


def check_counts(source: Source, array: str, labels: np.ndarray, origin: str) -> None:
    """Compare the labels (n,) of one stored array with the published counts.

    Raises DataError naming `origin`, the class, the expected and the found number.
    """
    expected = source.rows(array)
    if len(labels) != expected:
        raise DataError(f"{origin}: {source.name} {array} has {len(labels):,} images, expected {expected:,}")
    if len(labels) and not UNLABELED <= labels.min() <= labels.max() < source.num_classes:
        raise DataError(f"{origin}: {source.name} {array} has a label outside 0..{source.num_classes - 1}")
    for name, split in source.splits.items():
        if split.array != array or split.per_class is None:
            continue
        found = Counter(labels[split.start : split.stop].tolist())
        for label in range(source.num_classes):
            if found[label] != split.per_class:
                raise DataError(
                    f"{origin}: class {label} of {source.name} {name} has {found[label]:,} images, "
                    f"expected {split.per_class:,}"
                )
