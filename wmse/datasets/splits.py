"""What every data set offers, wherever its images lie, and the data set whose images lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class ImageFile(Protocol):
    """A JPEG file, as a `pathlib.Path` or a part of a packed file; its name, for messages, is `str(file)`."""

    def read_bytes(self) -> bytes: ...


class Split(Protocol):
    """One split: images of one size as an array, or JPEG files of any size, and the labels."""

    @property
    def images(self) -> np.ndarray:
        """uint8 (n, 3, H, W), not to be written to."""

    @property
    def files(self) -> Sequence[ImageFile]:
        """The n JPEG files in order."""

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,); -1 marks an image without a label."""

    def __len__(self) -> int: ...


class Dataset(Protocol):
    """The splits of a benchmark by name ("pretrain", "train", "test") and the digest of their content."""

    digest: str

    def __getitem__(self, name: str) -> Split: ...


@dataclass
class ArraySplit:
    """A `Split` in memory: give the images or, for a streamed benchmark, the files."""

    labels: np.ndarray
    images: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    files: Sequence[ImageFile] = ()

    def __len__(self) -> int:
        return len(self.labels)


class ArrayDataset(dict[str, ArraySplit]):
    """A `Dataset` in memory: `ArrayDataset(pretrain=split, train=split, test=split)`."""

    digest = "sha256:memory"
