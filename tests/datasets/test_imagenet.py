"""ImageNet and ImageNet-100: the layouts in which they are found, and what is missing or damaged."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from builders.raw import WNIDS, imagenet_source, prepare_raw, put, quiet, tar_bytes, with_archive, write_imagenet
from wmse.datasets import SOURCES, prepare
from wmse.datasets import imagenet as imagenet_module
from wmse.datasets.source import Rows
from wmse.errors import DataError
from wmse.runs.verify import verify


def test_imagenet100_list_is_the_published_one():
    wnids = imagenet_module.imagenet100_wnids()
    assert len(set(wnids)) == 100
    assert list(wnids) == sorted(wnids)
    content = "".join(f"{wnid}\n" for wnid in wnids).encode()
    assert hashlib.sha256(content).hexdigest() == "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"


def test_imagenet_class_folders(tmp_path):
    write_imagenet(tmp_path / "imagenet/raw", list(reversed(WNIDS)))
    data = prepare_raw(imagenet_source(), tmp_path)
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.name for path in data["train"].paths[:2]] == ["n02124075_0.JPEG", "n02124075_1.JPEG"]
    assert all(path.is_absolute() and path.is_file() for name in data for path in data[name].paths)
    assert len(data["test"]) == 3
    with pytest.raises(DataError, match="use `paths`"):
        _ = data["train"].images


def test_imagenet_layouts_give_the_same_digest(tmp_path):
    write_imagenet(tmp_path / "a/imagenet/raw", WNIDS)
    write_imagenet(tmp_path / "b/imagenet/raw", WNIDS, flat_val=True)
    raw = tmp_path / "c/imagenet/raw"
    write_imagenet(raw, WNIDS, flat_val=True)
    for split in ("train", "val"):
        (raw / "ILSVRC/Data/CLS-LOC").mkdir(parents=True, exist_ok=True)
        (raw / split).rename(raw / "ILSVRC/Data/CLS-LOC" / split)
    results = [prepare_raw(imagenet_source(), tmp_path / name) for name in "abc"]
    assert len({result.digest for result in results}) == 1
    for result in results:
        assert [path.name for path in result["test"].paths] == [path.name for path in results[0]["test"].paths]
        assert all(path.is_file() for path in result["test"].paths)
    put(tmp_path / "b/imagenet/raw/train/n02124075/n02124075_0.JPEG", bytes(99))
    (tmp_path / "b/imagenet/prepared/manifest.json").unlink()
    assert prepare_raw(imagenet_source(), tmp_path / "b").digest != results[0].digest


def test_imagenet_damage_is_named(tmp_path):
    raw = tmp_path / "imagenet/raw"
    write_imagenet(raw, WNIDS, flat_val=True)
    with pytest.raises(DataError, match="3 class folders, expected 1000"):
        prepare_raw(SOURCES["imagenet"], tmp_path)
    (raw / "train/n02124075/n02124075_0.JPEG").unlink()
    with pytest.raises(DataError, match="imagenet train has 5 images, expected 6"):
        prepare_raw(imagenet_source(), tmp_path)
    put(raw / "val/ILSVRC2012_val_00000009.JPEG", b"")
    with pytest.raises(DataError, match=r"00000009\.JPEG: .*no label"):
        prepare_raw(imagenet_source(), tmp_path)
    (raw / "val/ILSVRC2012_val_00000009.JPEG").unlink()
    (raw / "val/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataError, match=r"class n04540053 has 0 images, expected 1"):
        prepare_raw(imagenet_source(), tmp_path)
    (raw / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv: missing"):
        prepare_raw(imagenet_source(), tmp_path)


@pytest.mark.parametrize("home", ["imagenet", "imagenet100"])
def test_imagenet100_takes_its_classes_from_either_place(tmp_path, home):
    wnids = [*imagenet_module.imagenet100_wnids(), "n00000001", "n99999999"]
    write_imagenet(tmp_path / home / "raw", wnids, flat_val=home == "imagenet")
    data = prepare_raw(imagenet_source("imagenet100", 100), tmp_path)
    assert len(data["train"]) == 200
    assert sorted({path.parent.name for path in data["train"].paths}) == list(imagenet_module.imagenet100_wnids())
    assert data["test"].labels.tolist() == list(range(100))
    (tmp_path / "imagenet100/prepared/manifest.json").unlink()
    splits = SOURCES["imagenet100"].splits | {"test": Rows("test", 0, 100, 1)}
    with pytest.raises(DataError, match="imagenet100 train has 200 images, expected 126,689"):
        prepare_raw(dataclasses.replace(SOURCES["imagenet100"], splits=splits), tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet100"])
def test_imagenet_is_never_downloaded(tmp_path, name):
    with pytest.raises(DataError) as failure:
        prepare(name, tmp_path, log=quiet)
    for expected in (
        str(tmp_path / name / "raw"),
        "train/<wnid>/*.JPEG",
        "ILSVRC2012_img_train.tar",
        "LOC_val_solution.csv",
    ):
        assert expected in str(failure.value)


def test_imagenet_official_archives_are_unpacked(tmp_path):
    write_imagenet(tmp_path / "plain/imagenet/raw", WNIDS)
    write_imagenet(tmp_path / "model", WNIDS, flat_val=True)
    raw = tmp_path / "tars/imagenet/raw"
    classes = {
        f"{wnid}.tar": tar_bytes({p.name: p.read_bytes() for p in (tmp_path / "model/train" / wnid).iterdir()})
        for wnid in WNIDS
    }
    train = put(raw / "ILSVRC2012_img_train.tar", tar_bytes(classes))
    val_images = {path.name: path.read_bytes() for path in (tmp_path / "model/val").iterdir()}
    val = put(raw / "ILSVRC2012_img_val.tar", tar_bytes(val_images))
    put(raw / "LOC_val_solution.csv", (tmp_path / "model/LOC_val_solution.csv").read_bytes())
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar: .* bytes, expected 147,897,477,120"):
        prepare_raw(imagenet_source(), tmp_path / "tars")
    (raw / "train" / f".{WNIDS[1]}.partial").mkdir(parents=True)  # left by an interrupted run
    data = prepare_raw(with_archive(with_archive(imagenet_source(), train), val), tmp_path / "tars")
    assert data.digest == prepare_raw(imagenet_source(), tmp_path / "plain").digest
    assert not list((raw / "train").glob(".*"))


def test_where_nothing_of_imagenet_can_be_hashed_nothing_counts_as_verified(tmp_path):
    (tmp_path / "imagenet").mkdir()
    assert verify([], tmp_path, tmp_path).checked == {}
    write_imagenet(tmp_path / "imagenet/raw", WNIDS)  # images alone, of which no digest is published
    assert verify([], tmp_path, tmp_path).checked == {}


@pytest.mark.parametrize("damaged", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_both_archives_of_imagenet_are_verified(tmp_path, monkeypatch, damaged):
    source = SOURCES["imagenet"]
    for archive in source.archives:
        source = with_archive(source, put(tmp_path / "imagenet/raw" / archive.name, archive.name))
    monkeypatch.setitem(SOURCES, "imagenet", source)
    findings = verify([], tmp_path, tmp_path)
    assert (findings.checked, findings.problems) == ({"raw data": 2}, [])
    path = put(tmp_path / "imagenet/raw" / damaged, damaged.swapcase())
    (problem,) = verify([], tmp_path, tmp_path).problems
    assert problem.startswith(f"{path}: sha256 is ")
