"""CIFAR-10 and CIFAR-100: all official forms give the same arrays, whatever does not fit is named."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from builders import ROOT
from builders.hostile import Canary
from builders.raw import (
    cifar_batches,
    cifar_source,
    pack,
    prepare_raw,
    put,
    python2_pickle,
    quiet,
    with_archive,
    write_cifar,
)
from wmse.datasets import SOURCES, load, prepare
from wmse.errors import DataError


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_all_forms_of_cifar_give_the_same_prepared_bytes(name, tmp_path):
    source, results = cifar_source(name), {}
    dumps = {
        "python": python2_pickle,
        "python3": lambda batch: pickle.dumps(batch, protocol=4),
        "by-columns": lambda batch: pickle.dumps({**batch, b"data": np.asfortranarray(batch[b"data"])}, protocol=4),
        "python3-protocol2": lambda batch: pickle.dumps(batch, protocol=2),  # stores bytes by _codecs.encode
    }
    for label, dump in dumps.items():
        write_cifar(name, "python", tmp_path / label / name / "raw", dump)
        results[label] = prepare_raw(source, tmp_path / label)
    folder = write_cifar(name, "binary", tmp_path / "binary" / name / "raw")
    results["binary"] = prepare_raw(source, tmp_path / "binary")
    raw = tmp_path / "flat" / name / "raw"
    raw.parent.mkdir(parents=True)
    folder.rename(raw)
    results["flat"] = prepare_raw(source, tmp_path / "flat")
    for archive in source.archives:
        place = tmp_path / archive.form / name / "raw"
        if archive.form == "binary":
            write_cifar(name, "binary", place)
        packed = tmp_path / f"tar-{archive.form}" / name / "raw" / archive.name
        packed.parent.mkdir(parents=True)
        pack(place / archive.folder, packed)
        results[f"tar {archive.form}"] = prepare_raw(with_archive(source, packed), tmp_path / f"tar-{archive.form}")

    assert len({result.digest for result in results.values()}) == 1
    expected = cifar_batches(name)
    train = [value for batch, value in expected.items() if "test" not in batch]
    for result in results.values():
        assert result["train"].images.dtype == np.uint8
        assert result["train"].images.flags.c_contiguous
        assert not result["train"].images.flags.writeable
        assert isinstance(result["train"].images, np.memmap)
        assert result["train"].labels.dtype == np.int64
        np.testing.assert_array_equal(
            result["train"].images, np.concatenate([pixels for pixels, _ in train]).reshape(-1, 3, 32, 32)
        )
        np.testing.assert_array_equal(result["train"].labels, np.concatenate([labels for _, labels in train]))
        assert len(result["pretrain"]) == len(result["train"])
        assert len(result["test"]) == source.num_classes


def test_changed_pixels_change_the_digest(tmp_path):
    source = cifar_source("cifar10")
    write_cifar("cifar10", "binary", tmp_path / "a/cifar10/raw")
    folder = write_cifar("cifar10", "binary", tmp_path / "b/cifar10/raw")
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[-1] ^= 1
    (folder / "test_batch.bin").write_bytes(content)
    assert prepare_raw(source, tmp_path / "a").digest != prepare_raw(source, tmp_path / "b").digest


def test_hostile_pickle_is_refused(tmp_path):
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Canary(tmp_path / "owned"), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_2.*mkdir.*refused"):
        prepare_raw(cifar_source("cifar10"), tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}.", b"no pickle", pickle.dumps({b"data": [1], b"labels": [1]})])
def test_malformed_pickle_is_named(tmp_path, content):
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        prepare_raw(cifar_source("cifar10"), tmp_path)


def test_truncated_batch_is_named(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*truncated"):
        prepare_raw(cifar_source("cifar10"), tmp_path)


def test_missing_batch_is_named(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin.*missing"):
        prepare_raw(cifar_source("cifar10"), tmp_path)


def test_wrong_file_digest_names_file_expected_and_found(tmp_path):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    with pytest.raises(DataError, match=r"data_batch_1\.bin: md5 is \w{32}, expected 5dd7e06a14cb22eb9f671a540d1b7c25"):
        prepare_raw(SOURCES["cifar10"], tmp_path)


def test_a_wrong_digest_is_what_is_said_whatever_else_is_wrong_and_leaves_nothing(tmp_path):
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    small = cifar_source("cifar10")
    python = dataclasses.replace(small.archives[0], files=SOURCES["cifar10"].archives[0].files)
    source = dataclasses.replace(small, archives=(python,))
    for content in (None, b"no pickle", pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]})):
        if content:
            put(folder / "test_batch", content)
        with pytest.raises(DataError, match=r"data_batch_1: md5 is \w{32}, expected c99cafc1"):
            prepare_raw(source, tmp_path)
        assert list((tmp_path / "cifar10/prepared").iterdir()) == []


def test_wrong_archive_names_file_expected_and_found(tmp_path):
    path = put(tmp_path / "cifar10/raw/cifar-10-binary.tar.gz", b"partial")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: 7 bytes, expected 170,052,171"):
        prepare_raw(SOURCES["cifar10"], tmp_path)
    source = with_archive(SOURCES["cifar10"], path)
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match="sha256 is"):
        prepare_raw(source, tmp_path)


def test_wrong_class_counts_name_class_expected_and_found(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    path = folder / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[0] = (content[0] + 1) % 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"class \d of cifar10 test has [02] images, expected 1"):
        prepare_raw(cifar_source("cifar10"), tmp_path)
    with pytest.raises(DataError, match="not prepared"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("records", [9, 11])
def test_wrong_number_of_images(tmp_path, records):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    put(folder / "test_batch.bin", bytes(records * 3073))
    with pytest.raises(DataError, match=rf"cifar10 test has.* {records} images, expected 10"):
        prepare_raw(cifar_source("cifar10"), tmp_path)
    assert list((tmp_path / "cifar10/prepared").glob("*test*")) == []


def real_cifar10() -> Path | None:
    folders = [Path(os.environ.get("WMSE_REAL_CIFAR10", "/nonexistent")), ROOT / "data/cifar10/raw"]
    return next((folder for folder in folders if (folder / "cifar-10-batches-bin").is_dir()), None)


def test_real_cifar10(tmp_path):
    raw = real_cifar10()
    if raw is None:
        pytest.skip("no cifar-10-batches-bin in $WMSE_REAL_CIFAR10 or data/cifar10/raw")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/raw").symlink_to(raw.resolve())
    data = prepare("cifar10", tmp_path, download=False, log=quiet)
    assert data["train"].labels[:5].tolist() == [6, 9, 9, 4, 1]  # as every loader of CIFAR-10 shows them
    assert data["test"].labels[:5].tolist() == [3, 8, 8, 0, 6]
    mean = data["train"].images[:].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, SOURCES["cifar10"].mean, atol=1e-3)
