"""The embedded sample of Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders import ROOT
from builders.raw import quiet
from wmse.datasets import SOURCES, prepare


def test_fashion_mnist_needs_no_network(tmp_path):
    data = prepare("fashion_mnist", tmp_path, download=False, log=quiet)
    source = SOURCES["fashion_mnist"]
    assert data["train"].images.shape == (10_000, 3, 32, 32)
    assert data["test"].images.shape == (2_000, 3, 32, 32)
    assert np.bincount(data["train"].labels).tolist() == [1000] * 10
    assert np.bincount(data["test"].labels).tolist() == [200] * 10
    images = data["train"].images[:]
    assert (images[:, 0] == images[:, 1]).all()
    assert (images[:, 0] == images[:, 2]).all()
    border = np.ones((32, 32), bool)
    border[2:30, 2:30] = False
    assert images[:, :, border].max() == 0
    assert images.max() == 255
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)) / 255, source.mean, atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)) / 255, source.std, atol=1e-4)


def test_fashion_mnist_sample_is_small_licensed_and_traceable():
    folder = ROOT / "wmse/datasets/fashion_mnist_sample"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert "Copyright © 2017 Zalando SE" in (folder / "LICENSE").read_text(encoding="utf-8")
    for split, count, total in (("train", 10_000, 60_000), ("t10k", 2_000, 10_000)):
        rows = np.loadtxt(folder / f"{split}-rows.txt", dtype=int)
        assert rows.shape == (count,)
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] < rows[-1] < total
        labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        assert len(labels) == 8 + count


def test_fashion_mnist_sample_is_rebuilt_from_the_official_files(tmp_path):
    official = Path(os.environ.get("WMSE_REAL_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not official.is_dir():
        pytest.skip("no official Fashion-MNIST files in $WMSE_REAL_FASHION_MNIST or /usr/share/datasets/fashion-mnist")
    tool = ROOT / "tools/sample_fashion_mnist.py"
    subprocess.run([sys.executable, tool, official, tmp_path], check=True, capture_output=True)
    for path in tmp_path.iterdir():
        read = gzip.open if path.suffix == ".gz" else open  # compressed bytes differ between builds of zlib
        with read(path, "rb") as new, read(ROOT / "wmse/datasets/fashion_mnist_sample" / path.name, "rb") as shipped:
            assert new.read() == shipped.read(), path.name
