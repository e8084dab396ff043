"""The benchmarks: their description, and getting them onto disk in one prepared form.

    prepare("cifar10", Path("data"))                  # once: finds or downloads, verifies and converts
    data = load("cifar10", Path("data"))              # then: opens memory maps
    data["train"].images, data["train"].labels        # uint8 (50000, 3, 32, 32), int64 (50000,)

To add a benchmark, write a module here with its `Source`s in a tuple `SOURCES` and its parser: it is found by itself.
A folder of one's own images needs none (own.py); it is among `SOURCES` from when it is prepared or loaded.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from wmse.config import owner
from wmse.datasets.build import prepare_source
from wmse.datasets.own import own_source, own_sources, planned_source, prepare_folder
from wmse.datasets.prepared import Prepared, load_prepared
from wmse.datasets.source import Log, Source
from wmse.datasets.splits import ArrayDataset, ArraySplit, Dataset, Split
from wmse.errors import DataError
from wmse.image_folders import Survey

__all__ = [
    "SOURCES",
    "ArrayDataset",
    "ArraySplit",
    "Dataset",
    "Prepared",
    "Source",
    "Split",
    "find_folders",
    "load",
    "plan_folders",
    "prepare",
]


def find_sources(package: str, folders: Iterable[str]) -> dict[str, Source]:
    """The benchmarks of a package by name: what its modules list in `SOURCES`. ValueError if two have the same name."""
    found: dict[str, Source] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(folders)):
        add_sources(importlib.import_module(f"{package}.{name}"), found)
    return found


def add_sources(module: ModuleType, known: dict[str, Source]) -> None:
    """Add what a module lists in `SOURCES`. ValueError if there is one of the same name."""
    for source in getattr(module, "SOURCES", ()):
        if source.name in known:
            raise ValueError(f"{module.__name__}: there is another benchmark named '{source.name}'")
        known[source.name] = source


SOURCES: dict[str, Source] = find_sources(__name__, __path__)


def prepare(
    benchmark: str,
    data_root: Path,
    *,
    download: bool = True,
    pack: bool = False,
    log: Log = print,
    folder: Survey | None = None,
) -> Prepared:
    """Bring a benchmark into its prepared form in `data_root`/<benchmark>/prepared and open it.

    Takes the raw files that lie in `data_root`/<benchmark>/raw and otherwise downloads them, if `download` allows and
    the benchmark's terms do; or the images of a `folder` of one's own. With `pack`, JPEG files are copied into one file
    of the prepared form. Returns at once if the prepared form exists. Several processes may call it at once. `log` gets
    lines of text.

    Raises DataError: unknown benchmark; nothing there to prepare (the message says what to place where); files that
    are not the published ones, or images that cannot be read.
    """
    data_root = Path(data_root)
    if folder is None:
        return prepare_source(_source(benchmark, data_root), data_root, download=download, pack=pack, log=log)
    prepared = prepare_folder(folder, data_root, pack=pack, log=log)
    _source(benchmark, data_root)
    return prepared


def load(benchmark: str, data_root: Path, *, verify: bool = False, digest: str | None = None) -> Prepared:
    """Open a prepared benchmark; with `verify`, hash its arrays again. DataError if it is not prepared or changed.

    `digest` is how that of a folder of one's own begins, if it must be as it was then.
    """
    prepared = load_prepared(_source(benchmark, Path(data_root)), Path(data_root), verify=verify)
    if digest and not prepared.manifest.get("own", {}).get("digest", "").startswith(digest):
        raise DataError(
            f"{prepared.folder}: was prepared from another state of the folder than this run is for: run "
            f"`wmse prepare {benchmark}`. If that does not help, the folder has changed since: `wmse runs` names the "
            "runs for what it holds now"
        )
    return prepared


def plan_folders(folders: Iterable[Survey], data_root: Path) -> None:
    """Let `SOURCES` have folders of one's own as they are prepared, or else as far as they are known."""
    prepared = own_sources(data_root)
    SOURCES.update((found.name, prepared.get(found.name) or planned_source(found)) for found in folders)


def find_folders(data_root: Path) -> None:
    """Let `SOURCES` have every folder of one's own that is prepared in `data_root`."""
    for name, source in own_sources(data_root).items():
        if name not in SOURCES or SOURCES[name].own:
            SOURCES[name] = source


def _source(benchmark: str, data_root: Path) -> Source:
    if benchmark not in SOURCES and (plugin := owner("BENCHMARKS", benchmark)):
        add_sources(plugin.load(), SOURCES)
    if benchmark not in SOURCES or SOURCES[benchmark].own:
        try:
            SOURCES[benchmark] = own_source(benchmark, data_root)
        except DataError as error:
            known = ", ".join(name for name, source in SOURCES.items() if not source.own)
            raise DataError(
                f"unknown benchmark {benchmark!r}: known are {known}; of your own images, prepare those first that "
                f"config.yaml has under `datasets` ({error})"
            ) from None
    return SOURCES[benchmark]
