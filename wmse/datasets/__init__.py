"""The benchmarks: their description, and getting them onto disk in one prepared form.

    prepare("cifar10", Path("data"))                  # once: finds or downloads, verifies and converts
    data = load("cifar10", Path("data"))              # then: opens memory maps
    data["train"].images, data["train"].labels        # uint8 (50000, 3, 32, 32), int64 (50000,)

To add a benchmark, write a module with its `Source` and parser and add it to `SOURCES`.
"""

from __future__ import annotations

from pathlib import Path

from wmse.datasets.build import prepare_source
from wmse.datasets.cifar import CIFAR10, CIFAR100
from wmse.datasets.fashion_mnist import FASHION_MNIST
from wmse.datasets.imagenet import IMAGENET, IMAGENET100
from wmse.datasets.prepared import Prepared, Split, load_prepared
from wmse.datasets.source import UNLABELED, Archive, Log, Rows, Source
from wmse.datasets.stl10 import STL10
from wmse.datasets.tiny_imagenet import TINY_IMAGENET
from wmse.errors import DataError

__all__ = ["SOURCES", "UNLABELED", "Archive", "Prepared", "Rows", "Source", "Split", "load", "prepare"]

SOURCES: dict[str, Source] = {
    source.name: source for source in (CIFAR10, CIFAR100, STL10, TINY_IMAGENET, IMAGENET100, IMAGENET, FASHION_MNIST)
}


def prepare(
    benchmark: str, data_root: Path, *, download: bool = True, progress: bool | None = None, log: Log = print
) -> Prepared:
    """Bring a benchmark into its prepared form in `data_root`/<benchmark>/prepared and open it.

    Takes the raw files that lie in `data_root`/<benchmark>/raw and otherwise downloads them, if `download` allows and
    the benchmark's terms do. Returns at once if the prepared form exists. Several processes may call it at a time.
    `progress` shows bars (None: on a terminal only), `log` gets lines of text.

    Raises DataError: unknown benchmark; nothing there to prepare (the message says what to place where); files that
    are not the published ones.
    """
    return prepare_source(_source(benchmark), Path(data_root), download=download, progress=progress, log=log)


def load(benchmark: str, data_root: Path, *, verify: bool = False) -> Prepared:
    """Open a prepared benchmark; with `verify`, hash its arrays again. DataError if it is not prepared or changed."""
    return load_prepared(_source(benchmark), Path(data_root), verify=verify)


def _source(benchmark: str) -> Source:
    if benchmark not in SOURCES:
        raise DataError(f"unknown benchmark {benchmark!r}: known are {', '.join(SOURCES)}")
    return SOURCES[benchmark]
