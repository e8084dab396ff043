"""Tiny ImageNet: 200 classes of 64x64 JPEG files. Its validation images, the test split here, lie in ONE folder.

Labels are positions in wnids.txt. The prepared bytes come from a JPEG decoder: Pillow's wheels all carry libjpeg-turbo
and agree, a Pillow built against another libjpeg may differ in single grey levels and so give another digest.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from wmse.datasets.archives import RawFiles
from wmse.datasets.decode import decode_image
from wmse.datasets.source import Archive, Chunk, Rows, Source
from wmse.errors import DataError

_SIDE = 64
_CHUNK = 100  # Images are decoded and handed on in blocks of this many.
_AHEAD = 16  # The most blocks that are decoded before they are asked for: 20 MB.
_LARGEST = 1 << 22  # The most bytes of a list or an image; the longest list has 330 kB.
_WNID = re.compile(r"n\d{8}", re.ASCII)


def parse(source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield the training images by class as in wnids.txt, then the test images as in val_annotations.txt.

    Raises DataError naming the file or class: missing files, wrong numbers of images, broken or wrongly sized images.
    """
    wnids = _read_lines(files, "wnids.txt")
    if len(wnids) != source.num_classes or len(set(wnids)) != len(wnids):
        raise DataError(f"{files.where('wnids.txt')}: {len(set(wnids))} classes, expected {source.num_classes}")
    strange = next((wnid for wnid in wnids if not _WNID.fullmatch(wnid)), None)
    if strange is not None:
        raise DataError(f"{files.where('wnids.txt')}: {strange[:40]!r} is no WordNet id")
    train = _training_files(files, wnids, source.splits["train"].per_class)
    test = _validation_files(files, wnids, source.splits["test"].per_class)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from _decode_all(files, "train", train, pool)
        yield from _decode_all(files, "test", test, pool)


def _read_lines(files: RawFiles, name: str) -> list[str]:
    text = files.read(name, _LARGEST).decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _training_files(files: RawFiles, wnids: list[str], per_class: int) -> list[tuple[str, int]]:
    found = []
    for label, wnid in enumerate(wnids):
        folder = f"train/{wnid}/images"
        names = [name for name in files.listing(folder) if name.endswith(".JPEG")]
        if len(names) != per_class:
            raise DataError(f"{files.where(folder)}: class {wnid} has {len(names)} images, expected {per_class}")
        found += [(f"{folder}/{name}", label) for name in names]
    return found


def _validation_files(files: RawFiles, wnids: list[str], per_class: int) -> list[tuple[str, int]]:
    name = "val/val_annotations.txt"
    position = {wnid: label for label, wnid in enumerate(wnids)}
    present = set(files.listing("val/images"))
    if not present:
        raise DataError(f"{files.where('val/images')}: no images; the official layout has all 10,000 in this folder")
    found = []
    for line in _read_lines(files, name):
        image, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in position:
            raise DataError(f"{files.where(name)}: unknown class in line {line[:80]!r}")
        if image not in present:
            raise DataError(f"{files.where('val/images/' + image)}: missing, but {name} lists it")
        found.append((f"val/images/{image}", position[wnid]))
    counts = Counter(label for _, label in found)
    for wnid, label in position.items():
        if counts[label] != per_class:
            raise DataError(f"{files.where(name)}: class {wnid} has {counts[label]} images, expected {per_class}")
    return found


def _decode_all(files: RawFiles, array: str, items: list[tuple[str, int]], pool: ThreadPoolExecutor) -> Iterator[Chunk]:
    waiting = deque(items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
    begun: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
    while waiting or begun:
        while waiting and len(begun) < _AHEAD:
            begun.append(pool.submit(_decode, files, waiting.popleft()))
        yield array, *begun.popleft().result()


def _decode(files: RawFiles, items: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """JPEG files as uint8 (n, 3, 64, 64), and their labels (n,); grey ones (about 2 %) become RGB."""
    images = np.empty((len(items), 3, _SIDE, _SIDE), np.uint8)
    for image, (name, _) in zip(images, items, strict=True):
        decoded = decode_image(files.read(name, _LARGEST), files.where(name), (_SIDE, _SIDE))
        image[...] = decoded.transpose(2, 0, 1)
    return images, np.array([label for _, label in items])


_TRAIN = Rows("train", 0, 100_000, 500)

TINY_IMAGENET = Source(
    name="tiny_imagenet",
    title="Tiny ImageNet",
    homepage="http://cs231n.stanford.edu/",
    licence="images from ImageNet under its terms: non-commercial research and education",
    num_classes=200,
    image_size=_SIDE,
    mean=(0.480, 0.448, 0.398),
    std=(0.277, 0.269, 0.282),
    splits={"pretrain": _TRAIN, "train": _TRAIN, "test": Rows("test", 0, 10_000, 50)},
    archives=(
        Archive(
            name="tiny-imagenet-200.zip",
            size=248_100_043,
            # No digest on the homepage; every public loader that checks one has this.
            digest="md5:90528d7ca1a48142e341f4ef8d21d0de",
            # The Zenodo record is listed under the same MD5 by several public loaders.
            urls=(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
            ),
            folder="tiny-imagenet-200",
            form="jpeg",
            files={"wnids.txt": "", "val/val_annotations.txt": ""},
        ),
    ),
    parse=parse,
)

SOURCES = (TINY_IMAGENET,)
