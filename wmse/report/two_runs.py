"""Two runs side by side (`wmse compare`): what differs in configuration and circumstances, and their results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wmse.columns import align
from wmse.config import RunSpec
from wmse.errors import DataError
from wmse.report.results import show_value
from wmse.runs.folder import RunFolder
from wmse.runs.record import METRICS, Record, misfits, read_record

# What is compared of a training, in this order, with its heading.
TRAINING = {
    "final_loss": "last loss",
    "embedding_std": "spread",
    "effective_rank": "effective rank",
    "steps": "steps",
    "views": "views",
    "views_per_second": "views/s",
    "wall_seconds": "seconds of training",
    "peak_memory_bytes": "bytes of memory, peak",
}
NONE = "—"


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        spec: every parameter.
        circumstances: data, versions, commit, hardware and runtime, as far as it has been computed, by dotted keys.
        figures: accuracies in percent and `TRAINING`, as far as it has been computed.
        test_images: how many the accuracies are of; 0 if there are none.
        missing: what is still to be done for it, as a sentence; empty if nothing is.
    """

    run: str
    spec: dict[str, Any]
    circumstances: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    test_images: int = 0
    missing: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two runs, and by key the two values of what differs; None where a run has none."""

    sides: tuple[Side, Side]
    configuration: dict[str, tuple[Any, Any]]
    circumstances: dict[str, tuple[Any, Any]]
    figures: dict[str, tuple[float | None, float | None]]


def read_side(path: Path, spec: RunSpec | None = None) -> Side:
    """The run in the folder `path`, which is `spec` if that is known; it need not have been computed then.

    Raises DataError: there is nothing to compare, or a record that is not to be trusted.
    """
    folder = RunFolder(path)
    file = next((file for file in (folder.result, folder.pretrained) if file.exists()), None)
    if file is None and spec is None:
        raise DataError(
            f"{path}: holds neither {folder.result.name} nor {folder.pretrained.name}: name a folder of a run, such as "
            "results/runs/BENCHMARK/METHOD/seedN-HASH, or a run of the configuration (`wmse runs` lists them)"
        )
    if file is None:
        todo = "pretrain" if spec.trained else "evaluate"
        return Side(spec.run, spec.to_dict(), missing=f"{spec.run} is not finished: run `wmse {todo} {spec.name}`")
    record = read_record(file)
    for reason in misfits(record, folder=path, spec=spec):
        raise record.error(reason)
    found = RunSpec.from_dict(record.get("spec", dict), runnable=False)
    figures = {**(record.get("metrics", dict, optional=True) or {}), **(record.get("pretrain", dict, True, True) or {})}
    evaluated = file == folder.result
    return Side(
        record.get("run", str),
        found.to_dict(),
        dict(_circumstances(record)),
        {key: figures[key] for key in (*METRICS, *TRAINING) if _is_number(figures.get(key))},
        record.get("evaluation.test_images", int, optional=True) or 0,
        "" if evaluated else f"{found.run} is not evaluated: run `wmse evaluate {found.name}`",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _circumstances(record: Record) -> Iterator[tuple[str, Any]]:
    yield "data", record.get("data.digest", str)
    yield "preset", record.get("preset", str, none=True, optional=True)
    for stage, key in (("", "provenance"), ("evaluation.", "evaluation_provenance")):
        for name, value in (record.get(key, dict, optional=True) or {}).items():
            if isinstance(value, dict):
                yield from ((f"{stage}{name}.{part}", inner) for part, inner in value.items())
            elif name != "finished":  # every run has a moment of its own
                yield f"{stage}{name}", value


def compare_runs(first: Side, second: Side) -> Comparison:
    """What differs between two runs; an evaluation's circumstances are left out where they differ as the training's."""
    circumstances = _different(first.circumstances, second.circumstances)
    for key in list(circumstances):
        if key.startswith("evaluation.") and circumstances[key] == circumstances.get(key.removeprefix("evaluation.")):
            del circumstances[key]
    names = [key for key in (*METRICS, *TRAINING) if key in first.figures or key in second.figures]
    figures = {key: (first.figures.get(key), second.figures.get(key)) for key in names}
    return Comparison((first, second), _different(first.spec, second.spec), circumstances, figures)


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def as_json(found: Comparison) -> dict[str, Any]:
    """Plain values."""
    return {
        "runs": [side.run for side in found.sides],
        "configuration": found.configuration,
        "circumstances": found.circumstances,
        "results": {key: {"values": pair, "difference": _difference(pair)} for key, pair in found.figures.items()},
        "missing": [side.missing for side in found.sides if side.missing],
    }


def as_text(found: Comparison) -> Iterator[str]:
    """For people, in lines."""
    first, second = found.sides
    yield f"first   {first.run}"
    yield f"second  {second.run}"
    for title, different, whole in (
        ("configuration", found.configuration, first.spec),
        ("circumstances", found.circumstances, {**first.circumstances, **second.circumstances}),
    ):
        if title == "configuration" or (first.circumstances and second.circumstances):
            yield f"\n{title}: {len(different) or 'none'} of {len(whole)} differ"
            yield from _table((key, *map(_shown, pair)) for key, pair in different.items())
    if found.figures:
        yield "\nresults"
        rows = (({**METRICS, **TRAINING}[key], *_figures(pair)) for key, pair in found.figures.items())
        yield align([("", "first", "second", "second - first"), *rows])
    if noise := sampling_error(found):
        yield f"\n{noise}"
    for side in found.sides:
        if side.missing:
            yield f"\n{side.missing}"


def _table(rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    if lines := list(rows):
        yield align([("", "first", "second"), *lines])


def _shown(value: Any) -> str:
    return NONE if value is None else show_value(value)


def _figures(pair: tuple[float | None, float | None]) -> list[str]:
    whole = all(isinstance(value, int | None) for value in pair)
    form = ",d" if whole else ",.2f" if all(abs(value) >= 10 for value in pair if value) else ".4f"
    difference = _difference(pair)
    values = [NONE if value is None else format(value, form) for value in pair]
    return [*values, NONE if difference is None else format(difference, f"+{form}")]


def _difference(pair: tuple[float | None, float | None]) -> float | None:
    """The second minus the first."""
    return None if None in pair else pair[1] - pair[0]


def sampling_error(found: Comparison) -> str:
    """How far apart the accuracies of so many test images are by chance alone; nothing where there are none."""
    first, second = found.sides
    pair = found.figures.get("linear_top1", (None, None))
    if None in pair or not first.test_images or not second.test_images:
        return ""
    variance = sum(a * (100 - a) / n for a, n in zip(pair, (first.test_images, second.test_images), strict=True))
    images = min(first.test_images, second.test_images)
    return (
        f"Of {images:,} test images, two standard errors of a difference in linear top-1 are about "
        f"{2 * math.sqrt(variance):.1f} points; what another seed would change is not in them."
    )
