"""JPEG files in one packed file: the same content, names and digest as in folders."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from builders.raw import imagenet_source, prepare_raw, put, quiet, write_imagenet
from wmse.datasets import Prepared, Source, prepare
from wmse.datasets.build import prepare_source
from wmse.datasets.prepared import load_prepared
from wmse.datasets.source import Rows
from wmse.errors import DataError
from wmse.images import FileImages, decode
from wmse.views import ViewRecipe

WNIDS = ["n02124075", "n04067472", "n04540053"]
SOURCE = imagenet_source()


def prepare_packed(source: Source, data_root: Path) -> Prepared:
    return prepare_source(source, data_root, pack=True, log=quiet)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of different content and length, one of them empty."""
    write_imagenet(tmp_path / "imagenet/raw", WNIDS)
    for i, path in enumerate(sorted((tmp_path / "imagenet/raw").rglob("*.JPEG"))):
        path.write_bytes(os.urandom(40 * i))
    return tmp_path


def test_packed_files_are_the_files_of_the_folder_and_the_data_are_the_same(root: Path) -> None:
    loose = prepare_raw(SOURCE, root)
    content = {name: [path.read_bytes() for path in loose[name].files] for name in loose}
    packed = prepare_packed(SOURCE, root)
    assert packed.digest == loose.digest
    assert (loose.packed, packed.packed) == (False, True)
    assert prepare_raw(SOURCE, root).packed  # what is packed stays so
    shutil.rmtree(root / "imagenet/raw")
    packed = load_prepared(SOURCE, root, verify=True)
    for name in packed:
        assert [file.read_bytes() for file in packed[name].files] == content[name]
        assert len(content[name]) == len(packed[name].files) == len(packed[name].labels)
    assert str(packed["test"].files[-1]).endswith("test-pack.pack: val/n04540053/ILSVRC2012_val_00000001.JPEG")


def test_a_split_may_be_a_part_of_a_packed_file(root: Path) -> None:
    part = imagenet_source()
    part.splits["train"] = Rows("train", 2, 5)
    files = prepare_packed(part, root)["train"].files
    every = load_prepared(part, root)["pretrain"].files
    assert [str(file) for file in files] == [str(file) for file in every][2:5]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in every][2:5]


def test_packing_that_is_interrupted_leaves_no_prepared_form_and_begins_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sorted((root / "imagenet/raw/train").rglob("*.JPEG"))[4]
    content = first.read_bytes()
    read, full = Path.read_bytes, OSError(errno.ENOSPC, "No space left on device")

    def fail(path: Path) -> bytes:
        if path == first:
            raise full
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device.*train-pack\.pack"):
        prepare_packed(SOURCE, root)
    monkeypatch.undo()
    put(root / "imagenet/prepared/.train-pack.pack.1.2.tmp", b"of a process that was killed")
    with pytest.raises(DataError, match="not prepared"):
        load_prepared(SOURCE, root)
    packed = prepare_packed(SOURCE, root)
    assert packed["train"].files[4].read_bytes() == content
    assert not list(packed.folder.glob(".*"))


def test_damage_of_a_packed_file_or_its_index_is_found(root: Path) -> None:
    folder = prepare_packed(SOURCE, root).folder
    for name in ("train-pack.pack", "train-index.npy"):
        good = (folder / name).read_bytes()
        put(folder / name, good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises(DataError, match=f"{name}: sha256 of the content is"):
            load_prepared(SOURCE, root, verify=True)
        put(folder / name, good[:-1])
        with pytest.raises(DataError, match=f"{name}: .* bytes, expected"):
            load_prepared(SOURCE, root)
        put(folder / name, good)


def test_a_packed_file_that_shrinks_under_a_training_is_named(root: Path) -> None:
    files = prepare_packed(SOURCE, root)["train"].files
    os.truncate(files.path, 300)
    with pytest.raises(DataError, match=r"train-pack\.pack: train/n04540053/.*: ends after 0 of"):
        decode(files[5])


def test_only_files_can_be_packed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fashion_mnist: its images are stored as an array.*leave out --pack"):
        prepare("fashion_mnist", tmp_path, pack=True)


def test_views_of_packed_files_are_those_of_the_folder(tmp_path: Path) -> None:
    views = []
    for pack in (False, True):
        data = prepare("imagenet_mini", tmp_path, pack=pack, log=quiet)
        images = FileImages(data["pretrain"].files, ViewRecipe(size=24), 28, torch.device("cpu"))
        views.append(torch.stack(images.views(torch.arange(0, 1000, 90), 2, 0, 0)))
        images.close()
    assert torch.equal(*views)
