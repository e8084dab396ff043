"""Rebuild the sample of Fashion-MNIST that comes with the package.

    python tools/sample_fashion_mnist.py SRC_DIR wmse/datasets/fashion_mnist_sample

SRC_DIR holds the four official files (train-images-idx3-ubyte.gz and so on; https://github.com/zalandoresearch/fashion-mnist
or Debian's package dataset-fashion-mnist). They are checked by the SHA-256 of their uncompressed content, which is the
same wherever they were compressed. Of every class, the rows with the smallest SHA-256 of "<seed>:<split>:<row>" are
taken (1,000 of the training, 200 of the test images), in their original order. So the choice depends on no random
number generator, and it is written to *-rows.txt: line i is the original row of sample image i.

The content is reproducible everywhere; the compressed bytes are too where Python's zlib is the classic one.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np

SEED = 0
PER_CLASS = {"train": 1000, "t10k": 200}
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read(folder: Path, name: str) -> np.ndarray:
    """One official IDX file as uint8 (n, 28, 28) or (n,); exits if it is not the published one."""
    content = gzip.decompress((folder / name).read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        sys.exit(f"{folder / name}: sha256 of the content is {found}, expected {SHA256[name]}")
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write(path: Path, array: np.ndarray) -> None:
    """Write an IDX file, compressed without name and time so that equal content gives equal bytes."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def choose(labels: np.ndarray, split: str) -> np.ndarray:
    """Sorted rows of the sample, (10 * PER_CLASS[split],)."""

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{SEED}:{split}:{row}".encode()).digest()

    rows = [sorted(np.flatnonzero(labels == label).tolist(), key=rank)[: PER_CLASS[split]] for label in range(10)]
    return np.sort(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC_DIR")
    parser.add_argument("target", type=Path, metavar="OUT_DIR")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    for split in PER_CLASS:
        images_name, labels_name = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
        images, labels = read(arguments.source, images_name), read(arguments.source, labels_name)
        rows = choose(labels, split)
        write(arguments.target / images_name, images[rows])
        write(arguments.target / labels_name, labels[rows])
        (arguments.target / f"{split}-rows.txt").write_text("".join(f"{row}\n" for row in rows.tolist()))
    for path in sorted(arguments.target.glob("*.gz")):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
