"""Tiny ImageNet: folder and archive, damage."""

from __future__ import annotations

import numpy as np
import pytest

from builders.raw import WNIDS, jpeg, pack, prepare_raw, tiny_source, with_archive, write_tiny
from wmse.errors import DataError


def test_tiny_imagenet(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    data = prepare_raw(tiny_source(), tmp_path)
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data["test"].labels.tolist() == [2, 1, 0]
    assert data["train"].images.shape == (6, 3, 64, 64)
    np.testing.assert_allclose(data["train"].images.mean(axis=(2, 3))[:4, 0], [0, 20, 80, 100], atol=3)
    np.testing.assert_allclose(data["train"].images.mean(axis=(2, 3))[5], 90, atol=1)  # grey became RGB
    np.testing.assert_allclose(data["test"].images.mean(axis=(2, 3))[:, 0], [0, 50, 100], atol=3)
    monkeypatch.setattr("wmse.datasets.tiny_imagenet._CHUNK", 2)
    monkeypatch.setattr("wmse.datasets.tiny_imagenet._AHEAD", 2)
    packed = tmp_path / "zip/tiny_imagenet/raw/tiny-imagenet-200.zip"
    packed.parent.mkdir(parents=True)
    pack(folder, packed)
    assert prepare_raw(with_archive(tiny_source(), packed), tmp_path / "zip").digest == data.digest


def test_tiny_imagenet_damage_is_named(tmp_path):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    image = f"{WNIDS[0]}_1.JPEG"
    path = folder / f"train/{WNIDS[0]}/images" / image
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=f"{image}: not a readable image"):
        prepare_raw(tiny_source(), tmp_path)
    path.write_bytes(jpeg(3, size=32))
    with pytest.raises(DataError, match=f"{image}: 32x32 pixels, expected 64x64"):
        prepare_raw(tiny_source(), tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"class {WNIDS[0]} has 1 images, expected 2"):
        prepare_raw(tiny_source(), tmp_path)
    path.write_bytes(good)
    (folder / "val/images/val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG: missing"):
        prepare_raw(tiny_source(), tmp_path)
    for other in (folder / "val/images").iterdir():
        other.unlink()
    with pytest.raises(DataError, match=r"val/images: no images"):
        prepare_raw(tiny_source(), tmp_path)


def test_tiny_imagenet_uneven_validation_classes(tmp_path):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    path = folder / "val/val_annotations.txt"
    path.write_text(path.read_text().replace(WNIDS[0], WNIDS[1]))
    with pytest.raises(DataError, match=r"val_annotations\.txt: class n\d+ has [02] images, expected 1"):
        prepare_raw(tiny_source(), tmp_path)
