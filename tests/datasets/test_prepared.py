"""The prepared form: made once, checked when it is loaded, made again when it is damaged."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from builders.raw import cifar_source, prepare_raw, put, write_cifar
from wmse.datasets import load, prepare
from wmse.datasets.prepared import load_prepared
from wmse.errors import DataError


def test_load_of_missing_data_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="not prepared: run `wmse prepare cifar10`"):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"unknown benchmark 'mnist'.*cifar10"):
        prepare("mnist", tmp_path)


def test_prepare_is_idempotent_and_needs_raw_files_no_more(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    first = prepare_raw(cifar_source("cifar10"), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    second = prepare_raw(cifar_source("cifar10"), tmp_path)
    assert second.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times
    assert not [path for path in first.folder.iterdir() if path.name.endswith(".tmp")]


def test_damaged_prepared_form_is_noticed_and_rebuilt(tmp_path):
    source = cifar_source("cifar10")
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    digest = prepare_raw(source, tmp_path).digest
    images = tmp_path / "cifar10/prepared/train-images.npy"
    good = images.read_bytes()
    images.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"train-images\.npy: .* bytes, expected"):
        load_prepared(source, tmp_path)
    assert prepare_raw(source, tmp_path).digest == digest
    images.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_prepared(source, tmp_path)
    with pytest.raises(DataError, match=r"train-images\.npy: sha256 of the content"):
        load_prepared(source, tmp_path, verify=True)
    images.unlink()
    assert prepare_raw(source, tmp_path).digest == digest
    load_prepared(source, tmp_path, verify=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0, "benchmark": "cifar10"}', "\0"])
def test_unusable_manifest_is_rebuilt(tmp_path, content):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    put(tmp_path / "cifar10/prepared/manifest.json", content)
    put(tmp_path / "cifar10/prepared/.train-images.npy.1.tmp", "left by a killed process")
    with pytest.raises(DataError, match=r"manifest\.json.*wmse prepare cifar10"):
        load("cifar10", tmp_path)
    data = prepare_raw(cifar_source("cifar10"), tmp_path)
    assert not list(data.folder.glob(".*.tmp"))


def test_manifest_describes_splits_and_raw_files(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    data = prepare_raw(cifar_source("cifar10"), tmp_path)
    manifest = json.loads((tmp_path / "cifar10/prepared/manifest.json").read_text())
    assert manifest == data.manifest
    assert manifest["benchmark"] == "cifar10"
    assert manifest["splits"]["test"]["shape"] == [10, 3, 32, 32]
    assert manifest["splits"]["test"]["count"] == len(data["test"]) == 10
    sha256 = hashlib.sha256((folder / "test_batch.bin").read_bytes()).hexdigest()
    assert {"file": "test_batch.bin", "bytes": 30730, "digest": f"sha256:{sha256}"} in manifest["sources"]
    assert str(tmp_path) not in json.dumps(manifest)
    with pytest.raises(DataError, match="no split 'val'"):
        data["val"]


def _prepare_in_process(root: str) -> str:
    return prepare_raw(cifar_source("cifar10"), Path(root)).digest


def test_two_processes_prepare_at_the_same_time(tmp_path):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        digests = pool.map(_prepare_in_process, [str(tmp_path)] * 4)
    assert len(set(digests)) == 1
    assert load_prepared(cifar_source("cifar10"), tmp_path, verify=True).digest == digests[0]


def test_too_little_disk_space_is_said_before_writing(tmp_path, monkeypatch):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"cifar10 needs 0\.0 GB, only"):
        prepare_raw(cifar_source("cifar10"), tmp_path)
