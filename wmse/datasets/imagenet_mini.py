"""ImageNet in miniature: garments (garments.py) as a folder of JPEG files in ImageNet's layout.

It takes the recipes and the code path of the real ImageNet (class folders, a list of files, decoding while training)
through the whole pipeline in a minute, on machines that have no ImageNet.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from wmse.datasets.archives import FolderFiles
from wmse.datasets.build import verify_raw
from wmse.datasets.fashion_mnist import read_originals
from wmse.datasets.garments import GARMENTS, SEEDS, Draw, cut_outs
from wmse.datasets.imagenet import IMAGENET, list_class_folders
from wmse.datasets.source import Listing, Log, Rows, Source

PER_CLASS = {"train": 400, "val": 50}
WNIDS = tuple(f"n{label:08d}" for label in range(10))
_FOLDERS = {"train": "train", "test": "val"}


def scan(source: Source, data_root: Path, log: Log) -> Listing:
    """Write the JPEG files unless they are there, and list them as ImageNet's are listed."""
    raw = (Path(data_root) / source.name / "raw").absolute()
    if not all((raw / split).is_dir() for split in PER_CLASS):
        log(f"{source.name}: writing JPEG files to {raw}")
        _write_jpegs(raw)
    return list_class_folders(source, raw, WNIDS)


def _write_jpegs(raw: Path) -> None:
    """raw/train/WNID/*.JPEG and raw/val/WNID/*.JPEG; a split appears when it is complete."""
    sample = Path(__file__).with_name(GARMENTS.embedded.folder)
    verify_raw(sample, GARMENTS.embedded)
    for array, originals, labels in read_originals(FolderFiles(sample, "idx")):
        split, draw = _FOLDERS[array], Draw(SEEDS[array])
        partial = raw / f".{split}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for label, wnid in enumerate(WNIDS):
            (partial / wnid).mkdir(parents=True)
            for i, pixels in enumerate(cut_outs(originals[labels == label][: PER_CLASS[split]], draw)):
                _write_jpeg(partial / wnid / f"{wnid}_{i}.JPEG", pixels, i)
        shutil.rmtree(raw / split, ignore_errors=True)
        partial.rename(raw / split)


def _write_jpeg(path: Path, pixels: np.ndarray, i: int) -> None:
    """An image (3, h, w), enlarged to a size and an aspect ratio of its own as photographs have them."""
    from PIL import Image

    size = 36 + 7 * i % 29, 36 + 11 * i % 29
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


def _miniature(name: str, title: str) -> Source:
    train = Rows("train", 0, 10 * PER_CLASS["train"], PER_CLASS["train"])
    return Source(
        name=name,
        title=title,
        homepage=GARMENTS.homepage,
        licence=GARMENTS.licence,
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
