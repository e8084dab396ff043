"""Folders of somebody's own images, of every kind that a user may have."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builders.raw import put
from wmse.image_folders import FolderSet, Survey, folder_set, survey

KINDS = ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm", "tga")


def picture(shade: int, size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    """An image with a smooth pattern of its own in a colour of its class."""
    rng = np.random.default_rng([shade, seed])
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    colour = Image.new("RGB", size, (shade, 255 - shade, 128))
    return Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), colour, 0.6)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file of this suffix."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[f".{kind}"], **options)
    return buffer.getvalue()


def write_classes(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """So many images of each class (name), in class folders and in all formats."""
    Image.init()
    for shade, (name, count) in enumerate(classes.items()):
        for i in range(count):
            kind = KINDS[i % len(KINDS)]
            image = picture(60 * shade % 256, (30 + 3 * (i % 5), 30 + 2 * (i % 7)), seed + i)
            put(root / name / f"{name}-{seed + i}.{kind}", encoded(image, kind))
    return root


def wanted(root: Path, **settings: Any) -> FolderSet:
    """What config.yaml says about the folder."""
    return folder_set("mine", {"folder": str(root), "image_size": 16, **settings})


def look(root: Path, **settings: Any) -> Survey:
    """The folder as the data set `mine`."""
    return survey("mine", wanted(root, **settings))
