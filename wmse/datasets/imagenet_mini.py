"""ImageNet in miniature: the embedded Fashion-MNIST sample as a folder of JPEG files in ImageNet's layout.

It takes the recipes and the code path of the real ImageNet (class folders, a list of files, decoding while training)
through the whole pipeline in a minute, on machines that have no ImageNet.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from wmse.datasets.archives import FolderFiles
from wmse.datasets.build import verify_raw
from wmse.datasets.fashion_mnist import FASHION_MNIST, read_idx
from wmse.datasets.imagenet import IMAGENET, list_class_folders
from wmse.datasets.source import Listing, Log, Rows, Source

PER_CLASS = {"train": 100, "val": 20}
WNIDS = tuple(f"n{label:08d}" for label in range(10))
_FILES = {"train": "train", "val": "t10k"}


def scan(source: Source, data_root: Path, log: Log) -> Listing:
    """Write the JPEG files unless they are there, and list them as ImageNet's are listed."""
    raw = (Path(data_root) / source.name / "raw").absolute()
    if not all((raw / split).is_dir() for split in PER_CLASS):
        log(f"{source.name}: writing JPEG files to {raw}")
        _write_jpegs(raw)
    return list_class_folders(source, raw, WNIDS)


def _write_jpegs(raw: Path) -> None:
    """raw/train/WNID/*.JPEG and raw/val/WNID/*.JPEG; a split appears when it is complete."""
    sample = Path(__file__).with_name(FASHION_MNIST.embedded.folder)
    verify_raw(sample, FASHION_MNIST.embedded)
    files = FolderFiles(sample, "idx")
    for split, prefix in _FILES.items():
        images = read_idx(files, f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = read_idx(files, f"{prefix}-labels-idx1-ubyte.gz", 1)
        partial = raw / f".{split}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for label, wnid in enumerate(WNIDS):
            (partial / wnid).mkdir(parents=True)
            for i, pixels in enumerate(images[labels == label][: PER_CLASS[split]]):
                _write_jpeg(partial / wnid / f"{wnid}_{i}.JPEG", pixels, i)
        shutil.rmtree(raw / split, ignore_errors=True)
        partial.rename(raw / split)


def _write_jpeg(path: Path, pixels: np.ndarray, i: int) -> None:
    """A grey image (28, 28) as RGB, enlarged to a size and an aspect ratio of its own as photographs have them."""
    from PIL import Image

    size = 36 + 7 * i % 29, 36 + 11 * i % 29
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.convert("RGB").save(path, "JPEG", quality=95)


def _miniature(name: str, title: str) -> Source:
    train = Rows("train", 0, 10 * PER_CLASS["train"], PER_CLASS["train"])
    return Source(
        name=name,
        title=title,
        homepage=FASHION_MNIST.homepage,
        licence=FASHION_MNIST.licence,
        num_classes=10,
        image_size=None,
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        splits={"pretrain": train, "train": train, "test": Rows("test", 0, 10 * PER_CLASS["val"], PER_CLASS["val"])},
        scan=scan,
    )


IMAGENET100_MINI = _miniature("imagenet100_mini", "ImageNet-100 in miniature")
IMAGENET_MINI = _miniature("imagenet_mini", "ImageNet in miniature")
SOURCES = (IMAGENET100_MINI, IMAGENET_MINI)
