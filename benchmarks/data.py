"""Preparing data sets: images per second from the raw release to the prepared form, against a plain single loop."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Table, ratio

from wmse.datasets import SOURCES, Source
from wmse.datasets.build import prepare_source
from wmse.datasets.source import Rows

RNG = np.random.default_rng(0)
ROUNDS = 5


def pixels(n: int, side: int) -> np.ndarray:
    """uint8 (n, 3, side, side): smooth fields, which compress about as well as photographs."""
    coarse = torch.from_numpy(RNG.standard_normal((n, 3, 6, 6), dtype=np.float32))
    x = 128 + 50 * torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (x + 8 * torch.randn_like(x)).clamp(0, 255).to(torch.uint8).numpy()


def reduced(source: Source, counts: dict[str, int], archive: Path | None = None, **changes: object) -> Source:
    """`source` with `counts` rows a split, and without published digests but that of `archive`."""
    splits = {name: Rows(source.splits[name].array, 0, rows) for name, rows in counts.items()}
    kept = dataclasses.replace(source.archives[0], files=dict.fromkeys(source.archives[0].files, ""))
    if archive:
        digest = "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
        kept = dataclasses.replace(kept, size=archive.stat().st_size, digest=digest)
    return dataclasses.replace(source, splits=splits, archives=(kept,), **changes)


def cifar10(raw: Path) -> tuple[Source, Callable[[], np.ndarray], int]:
    """The whole of CIFAR-10 in the form and size of its archive, with other pixels."""
    source = SOURCES["cifar10"]
    path = raw / source.archives[0].name
    with tarfile.open(path, "w:gz", compresslevel=6) as tar:
        for name in source.archives[0].files:
            batch = {b"data": pixels(10_000, 32).reshape(-1, 3072), b"labels": (np.arange(10_000) % 10).tolist()}
            content = pickle.dumps(batch, protocol=3)  # bytes as they are, like the pickles of Python 2
            entry = tarfile.TarInfo(f"{source.archives[0].folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

    def plain() -> np.ndarray:
        images = []
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                batch = pickle.loads(tar.extractfile(member).read(), encoding="bytes")
                images += [np.asarray(row).reshape(3, 32, 32) for row in batch[b"data"]]
        return np.stack(images)

    counts = {"pretrain": 50_000, "train": 50_000, "test": 10_000}
    return reduced(source, counts, path), plain, 60_000


def stl10(raw: Path) -> tuple[Source, Callable[[], np.ndarray], int]:
    """A part of STL-10's binary release, unpacked."""
    source = SOURCES["stl10"]
    folder = raw / source.archives[0].folder
    folder.mkdir()
    files = {"train": 1000, "unlabeled": 4000, "test": 1000}
    for name, n in files.items():
        (folder / f"{name}_X.bin").write_bytes(pixels(n, 96).swapaxes(2, 3).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes((np.arange(n) % 10 + 1).astype(np.uint8).tobytes())

    def plain() -> np.ndarray:
        images = []
        for name, n in files.items():
            with open(folder / f"{name}_X.bin", "rb") as file:
                for _ in range(n):
                    columns_first = np.frombuffer(file.read(3 * 96 * 96), np.uint8).reshape(3, 96, 96)
                    images.append(columns_first.swapaxes(1, 2).copy())
        return np.stack(images)

    return reduced(source, {"pretrain": 5000, "train": 1000, "test": 1000}), plain, 6000


def tiny_imagenet(raw: Path) -> tuple[Source, Callable[[], np.ndarray], int]:
    """A folder of Tiny ImageNet's layout with 20 classes."""
    source, classes, train, test = SOURCES["tiny_imagenet"], 20, 200, 20
    folder = raw / source.archives[0].folder
    wnids = [f"n{i:08d}" for i in range(classes)]
    lines = []
    (folder / "val" / "images").mkdir(parents=True)
    for wnid in wnids:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for i, image in enumerate(pixels(train + test, 64)):
            place = f"train/{wnid}/images/{wnid}_{i}" if i < train else f"val/images/{wnid}_{i}"
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{place}.JPEG", quality=75)
            if i >= train:
                lines.append(f"{wnid}_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))

    def plain() -> np.ndarray:
        paths = [*sorted(folder.glob("train/*/images/*.JPEG")), *sorted(folder.glob("val/images/*.JPEG"))]
        return np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in paths])

    splits = {name: Rows(array, 0, classes * n, n) for name, array, n in (
        ("pretrain", "train", train), ("train", "train", train), ("test", "test", test)
    )}  # fmt: skip
    small = reduced(source, dict.fromkeys(source.splits, 1), num_classes=classes)
    return dataclasses.replace(small, splits=splits), plain, classes * (train + test)


def measure(device: torch.device) -> list[Table]:
    table = Table(
        "Preparing data",
        ["benchmark", "images", "ours, images/s", "plain loop, images/s", "plain loop / ours"],
        "Ours checks the digest of the archive, counts, parses or decodes, writes, hashes and flushes the prepared"
        " arrays;"
        " the plain loop takes one image after the other and saves one array, with no check of anything.",
    )
    for build in (cifar10, stl10, tiny_imagenet):
        with tempfile.TemporaryDirectory() as folder:
            table.rows.append(_row(build, Path(folder)))
    return [table]


def _row(build: Callable[[Path], tuple[Source, Callable[[], np.ndarray], int]], root: Path) -> list[str]:
    name = build.__name__
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    source, plain, images = build(raw)
    ours_s, plain_s = [], []
    for turn in range(ROUNDS + 1):
        shutil.rmtree(root / name / "prepared", ignore_errors=True)
        times = []
        for run in (
            lambda: prepare_source(source, root, download=False, log=lambda line: None),
            lambda: np.save(root / "plain.npy", plain()),
        ):
            os.sync()  # What one leaves to the disk's cache is not the other's to write.
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        if turn:  # the first warms the caches
            ours_s.append(times[0])
            plain_s.append(times[1])
    rates = [f"{images / statistics.median(seconds):,.0f}" for seconds in (ours_s, plain_s)]
    return [name, f"{images:,}", *rates, ratio(plain_s, ours_s)]
