"""STL-10: folder and archive, the orientation of its images, damage."""

from __future__ import annotations

import numpy as np
import pytest

from builders.raw import pack, prepare_raw, stl_source, with_archive, write_stl10
from wmse.errors import DataError


def test_stl10_folder_and_archive(tmp_path, monkeypatch):
    monkeypatch.setattr("wmse.datasets.stl10._CHUNK", 7)
    folder, images, labels = write_stl10(tmp_path / "stl10/raw")
    data = prepare_raw(stl_source(), tmp_path)
    np.testing.assert_array_equal(data["pretrain"].images, images[:23])
    np.testing.assert_array_equal(data["train"].images, images[:20])
    np.testing.assert_array_equal(data["test"].images, images[23:])
    np.testing.assert_array_equal(data["pretrain"].labels, labels[:23])
    np.testing.assert_array_equal(data["test"].labels, labels[23:])
    assert (data["pretrain"].labels[20:] == -1).all()
    packed = tmp_path / "packed/stl10/raw/stl10_binary.tar.gz"
    packed.parent.mkdir(parents=True)
    pack(folder, packed)
    assert prepare_raw(with_archive(stl_source(), packed), tmp_path / "packed").digest == data.digest


def test_stl10_orientation(tmp_path):
    folder, _, _ = write_stl10(tmp_path / "stl10/raw")
    # The first published image: red plane, first column (not row) white.
    content = bytearray((folder / "train_X.bin").read_bytes())
    content[: 3 * 96 * 96] = bytes([255] * 96) + bytes(3 * 96 * 96 - 96)
    (folder / "train_X.bin").write_bytes(content)
    first = prepare_raw(stl_source(), tmp_path)["train"].images[0]
    assert (first[0, :, 0] == 255).all()
    assert (first[0, :, 1:] == 0).all()
    assert (first[1:] == 0).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unlabeled_X.bin", bytes(100), "truncated"),
        ("train_y.bin", bytes([1] * 19), "19 labels for 20 images"),
        ("train_y.bin", bytes(20), r"1\.\.10"),
    ],
)
def test_stl10_damage_is_named(tmp_path, name, content, message):
    folder, _, _ = write_stl10(tmp_path / "stl10/raw")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        prepare_raw(stl_source(), tmp_path)
