"""The benchmarks: their description, and getting them onto disk in one prepared form.

    prepare("cifar10", Path("data"))                  # once: finds or downloads, verifies and converts
    data = load("cifar10", Path("data"))              # then: opens memory maps
    data["train"].images, data["train"].labels        # uint8 (50000, 3, 32, 32), int64 (50000,)

To add a benchmark, write a module here with its `Source`s in a tuple `SOURCES` and its parser: it is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from wmse.datasets.build import prepare_source
from wmse.datasets.prepared import Prepared, load_prepared
from wmse.datasets.source import Log, Source
from wmse.datasets.splits import ArrayDataset, ArraySplit, Dataset, Split
from wmse.errors import DataError

__all__ = ["SOURCES", "ArrayDataset", "ArraySplit", "Dataset", "Prepared", "Source", "Split", "load", "prepare"]


def find_sources(package: str, folders: Iterable[str]) -> dict[str, Source]:
    """The benchmarks of a package by name: what its modules list in `SOURCES`. ValueError if two have the same name."""
    found: dict[str, Source] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(folders)):
        for source in getattr(importlib.import_module(f"{package}.{name}"), "SOURCES", ()):
            if source.name in found:
                raise ValueError(f"{package}.{name}: there is another benchmark named '{source.name}'")
            found[source.name] = source
    return found


SOURCES: dict[str, Source] = find_sources(__name__, __path__)


def prepare(
    benchmark: str, data_root: Path, *, download: bool = True, pack: bool = False, log: Log = print
) -> Prepared:
    """Bring a benchmark into its prepared form in `data_root`/<benchmark>/prepared and open it.

    Takes the raw files that lie in `data_root`/<benchmark>/raw and otherwise downloads them, if `download` allows and
    the benchmark's terms do. With `pack`, JPEG files are copied into one file of the prepared form. Returns at once if
    the prepared form exists. Several processes may call it at once. `log` gets lines of text.

    Raises DataError: unknown benchmark; nothing there to prepare (the message says what to place where); files that
    are not the published ones.
    """
    return prepare_source(_source(benchmark), Path(data_root), download=download, pack=pack, log=log)


def load(benchmark: str, data_root: Path, *, verify: bool = False) -> Prepared:
    """Open a prepared benchmark; with `verify`, hash its arrays again. DataError if it is not prepared or changed."""
    return load_prepared(_source(benchmark), Path(data_root), verify=verify)


def _source(benchmark: str) -> Source:
    if benchmark not in SOURCES:
        raise DataError(f"unknown benchmark {benchmark!r}: known are {', '.join(SOURCES)}")
    return SOURCES[benchmark]
