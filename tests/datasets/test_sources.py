"""What is said about every benchmark, and how the benchmarks are found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from builders.raw import put
from wmse.datasets import SOURCES, find_sources


def test_every_source_is_complete():
    assert set(SOURCES) == {
        "cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet100", "imagenet", "fashion_mnist",
        "garments", "imagenet100_mini", "imagenet_mini",
    }  # fmt: skip
    for name, source in SOURCES.items():
        assert source.name == name
        assert {"pretrain", "train", "test"} == set(source.splits)
        assert len(source.mean) == len(source.std) == 3
        assert source.licence
        assert source.homepage.startswith("http")
        assert source.streamed == (source.image_size is None) == name.startswith("imagenet")
        assert (source.parse is None) != (source.scan is None)
        for archive in source.archives:
            algorithm, _, value = archive.digest.partition(":")
            assert len(value) == len(hashlib.new(algorithm).hexdigest())
            assert all(url.startswith("http") for url in archive.urls)
            assert bool(archive.urls) != source.streamed


def write_package(folder: Path, **modules: str) -> Path:
    """A package of benchmark modules, each with copies of CIFAR-10 under the given names."""
    for module, names in modules.items():
        sources = ", ".join(f"replace(CIFAR10, name={name!r})" for name in names.split())
        code = f"from dataclasses import replace\nfrom wmse.datasets.cifar import CIFAR10\nSOURCES = ({sources},)\n"
        put(folder / f"{module}.py", code)
    put(folder / "__init__.py", "")
    put(folder / "helper.py", "SIZE = 3\n")  # a module without benchmarks
    return folder


def test_the_benchmarks_of_every_module_are_found(tmp_path, monkeypatch):
    folder = write_package(tmp_path / "found_benchmarks", first="one two", second="three")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(find_sources("found_benchmarks", [str(folder)])) == ["one", "two", "three"]
    folder = write_package(tmp_path / "twice_benchmarks", first="one", second="one")
    with pytest.raises(ValueError, match=r"twice_benchmarks.second: there is another benchmark named 'one'"):
        find_sources("twice_benchmarks", [str(folder)])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", {"pretrain": 50_000, "train": 50_000, "test": 10_000}),
        ("cifar100", {"pretrain": 50_000, "train": 50_000, "test": 10_000}),
        ("stl10", {"pretrain": 105_000, "train": 5_000, "test": 8_000}),
        ("tiny_imagenet", {"pretrain": 100_000, "train": 100_000, "test": 10_000}),
        ("imagenet100", {"pretrain": 126_689, "train": 126_689, "test": 5_000}),
        ("imagenet", {"pretrain": 1_281_167, "train": 1_281_167, "test": 50_000}),
        ("fashion_mnist", {"pretrain": 10_000, "train": 10_000, "test": 2_000}),
        ("garments", {"pretrain": 10_000, "train": 10_000, "test": 2_000}),
    ],
)
def test_published_counts(name, counts):
    source = SOURCES[name]
    assert {split: rows.stop - rows.start for split, rows in source.splits.items()} == counts
    for rows in source.splits.values():
        assert rows.per_class is None or rows.per_class * source.num_classes == rows.stop - rows.start
