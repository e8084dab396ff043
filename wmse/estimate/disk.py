"""How much disk a configuration still needs: data sets, checkpoints and encoders."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from wmse.config import Project, RunSpec
from wmse.datasets import SOURCES, Source, load
from wmse.datasets.build import placed_raw
from wmse.errors import DataError
from wmse.methods import build_method
from wmse.runs.folder import RunFolder

LISTED = 64  # Bytes of an image whose file is only listed: its path, about 40 in ImageNet, and its label, 8.
FILE = 4096  # Bytes of a file of a few kB, as the miniatures write them: a block of most file systems.
STATES = {"adam": 2, "lars": 1}  # Values that the optimiser keeps of a parameter.


class RunSize(NamedTuple):
    """Bytes of what a training leaves behind, without its history and logs, some hundred kB."""

    checkpoint: int
    encoder: int


def data_bytes(benchmarks: Sequence[str], data_root: Path) -> int:
    """Bytes that raw and prepared data still take.

    An archive that two benchmarks read counts once. Of ImageNet, whose files somebody has to place, it is the size of
    the archives, hence of the images, unless something lies there.
    """
    raw, prepared = dict[str, int](), 0
    for name in benchmarks:
        try:
            load(name, data_root)
        except DataError:
            raw |= _missing_raw(SOURCES[name], data_root)
            prepared += _prepared_bytes(SOURCES[name])
    return sum(raw.values()) + prepared


def _missing_raw(source: Source, data_root: Path) -> dict[str, int]:
    """The archives that are still to be had, with their bytes."""
    raw = data_root / source.name / "raw"
    if next(placed_raw(source, raw), None) or source.own:
        return {}
    if not source.archives:  # written by the preparation itself
        return {} if raw.exists() else {source.name: FILE * _rows(source)}
    if published := next((archive for archive in source.archives if archive.urls), None):
        part = raw / f"{published.name}.part"
        return {published.name: published.size - (part.stat().st_size if part.exists() else 0)}
    placed = any(any((data_root / name / "raw").glob("*")) for name in (source.name, "imagenet"))
    return {} if placed else {archive.name: archive.size for archive in source.archives}


def _rows(source: Source) -> int:
    return sum(source.rows(array) for array in source.arrays())


def _prepared_bytes(source: Source) -> int:
    return _rows(source) * (LISTED if source.streamed else 3 * source.image_size**2 + 8)


def runs_bytes(project: Project, results: Path) -> int:
    """Bytes that the trainings still take, each with as many checkpoints as are kept and the largest with one more."""
    sizes: dict[Hashable, RunSize] = {}
    total = most = 0
    for spec in project.runs:
        folder = RunFolder.of(results, spec.run)
        if not spec.trained or folder.pretrained.exists():
            continue
        key = spec.same_step()
        sizes[key] = size = sizes.get(key) or run_size(spec)
        present = sum(path.stat().st_size for path in folder.checkpoints.glob("*.pt"))
        total += max(project.settings["keep_checkpoints"] * size.checkpoint - present, 0) + size.encoder
        most = max(most, size.checkpoint)  # an old one goes when the new one is complete
    return total + most


def run_size(spec: RunSpec) -> RunSize:
    """Bytes of a checkpoint and of the encoder: of all weights, and of the optimiser's values. Nothing is allocated."""
    with torch.device("meta"):
        method = build_method(spec, 0)
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    weights, encoder = (
        sum(t.numel() * t.element_size() for t in module.state_dict().values()) for module in (method, method.encoder)
    )
    return RunSize(weights + STATES[spec.optimizer] * trained, encoder)
