"""The cost of every run and of all together, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wmse.columns import align
from wmse.config import RunSpec
from wmse.estimate.plan import image_counts, workload
from wmse.estimate.warm_up import KNN_TEST, WarmUp
from wmse.power import PowerMeter
from wmse.progress import tracked
from wmse.runs.folder import RunFolder


@dataclass(frozen=True)
class RunEstimate:
    """The cost of one run; what does not apply or is not known is None.

    `hours` is training and evaluation together, `measured_images` the part of the batch that the step was timed with.
    """

    run: str
    done: bool
    views: int
    steps: int
    evaluations: int
    batch_size: int
    measured_images: int | None = None
    out_of_memory: bool = False
    ms_per_step: float | None = None
    views_per_second: float | None = None
    hours: float | None = None
    evaluation_hours: float | None = None
    kwh: float | None = None


def estimate_runs(runs: Sequence[RunSpec], results: Path, data_root: Path, warm_up: WarmUp) -> list[RunEstimate]:
    """The cost of every run; those with a result in the folder `results` are done and cost nothing more."""
    estimates = []
    for spec in tracked(runs, "run", "warm-ups"):
        counts = image_counts(spec.probed, data_root) | {
            "pretrain": image_counts(spec.benchmark, data_root)["pretrain"]
        }
        work = workload(spec, counts["pretrain"])
        if "test" not in counts:  # images without labels
            work = replace(work, evaluations=0)
        done = RunFolder.of(results, spec.run).result.exists()
        counted = RunEstimate(spec.name, done, **asdict(work), batch_size=spec.batch_size)
        estimates.append(counted if done else price(counted, spec, counts, warm_up))
    return estimates


def price(counted: RunEstimate, spec: RunSpec, counts: Mapping[str, int], warm_up: WarmUp) -> RunEstimate:
    """The run with its times and energy, from measured costs; `counts` are the images of every split."""
    step = warm_up.step(spec) if spec.trained else None
    parts = []
    if "test" in counts:
        train, test = counts["train"], counts["test"]
        passes = counted.evaluations + 1  # one more for the final probes
        parts = [
            (passes * (train + test), warm_up.extraction(spec)),
            (passes * train * test / KNN_TEST, warm_up.knn(spec, train)),
            (spec.probe_epochs * train, warm_up.linear(spec, train)),
        ]
    evaluation = sum(count * cost.seconds for count, cost in parts)
    if step:
        parts.append((counted.steps * spec.batch_size, step))
        counted = replace(
            counted,
            measured_images=step.size,
            out_of_memory=step.out_of_memory,
            ms_per_step=1e3 * spec.batch_size * step.seconds,
            views_per_second=spec.d / step.seconds,
        )
    hours = sum(count * cost.seconds for count, cost in parts) / 3600
    known = all(cost.watts is not None for _, cost in parts)
    kwh = sum(count * cost.seconds * (cost.watts or 0) for count, cost in parts) / 3.6e6 if known else None
    return replace(counted, hours=hours, evaluation_hours=evaluation / 3600, kwh=kwh)


def total(runs: Sequence[RunEstimate]) -> dict[str, Any]:
    """The sum of what is left to do; the energy is None if that of any run is."""
    left = [run for run in runs if not run.done]
    energy = [run.kwh for run in left]
    return {
        "runs": len(left),
        "done": len(runs) - len(left),
        "views": sum(run.views for run in left),
        "steps": sum(run.steps for run in left),
        "hours": sum(run.hours or 0 for run in left),
        "evaluation_hours": sum(run.evaluation_hours or 0 for run in left),
        "kwh": None if None in energy else sum(value or 0 for value in energy),
    }


def format_count(value: float) -> str:
    """A count in three or four digits: 999, 102.4 k, 3.07 G."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.0f}"


def format_number(value: float | None) -> str:
    """Three significant digits and no exponent; an em dash for None."""
    if value is None:
        return "—"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.1g}"


def format_hours(hours: float) -> str:
    """Hours in a unit to plan with: 40 s, 12 min, 3.4 h, 5.2 days."""
    for unit, name in ((24.0, "days"), (1.0, "h"), (1 / 60, "min")):
        if hours >= 2 * unit:
            return f"{hours / unit:.1f} {name}"
    return f"{3600 * hours:.0f} s"


HEADER = ["run", "views", "steps", "ms/step", "views/s", "hours", "of it eval.", "kWh"]


def as_table(runs: Sequence[RunEstimate]) -> str:
    """The runs and their sum as an aligned table."""
    return align([HEADER, *map(_row, runs), _sums(total(runs))])


def _row(run: RunEstimate) -> list[str]:
    views, steps = (format_count(run.views), format_count(run.steps)) if run.steps else ("—", "—")
    if run.done:
        return [run.run, views, steps, "—", "—", "done", "—", "—"]
    speed = "—" if run.views_per_second is None else format_count(run.views_per_second)
    costs = [format_number(value) for value in (run.hours, run.evaluation_hours, run.kwh)]
    return [run.run, views, steps, format_number(run.ms_per_step) + _mark(run), speed, *costs]


def _sums(whole: dict[str, Any]) -> list[str]:
    name = f"sum of {whole['runs']}" + (f" ({whole['done']} done)" if whole["done"] else "")
    costs = [format_number(whole[key]) for key in ("hours", "evaluation_hours", "kwh")]
    return [name, format_count(whole["views"]), format_count(whole["steps"]), "", "", *costs]


def _mark(run: RunEstimate) -> str:
    """What stands behind the time of a step that was not measured on a whole batch; see `notes`."""
    if run.measured_images is None or run.measured_images >= run.batch_size:
        return ""
    return "!" if run.out_of_memory else "*"


def notes(runs: Sequence[RunEstimate], meter: PowerMeter) -> Iterator[str]:
    """What the numbers mean, and what they leave out."""
    yield f"left to do: {format_hours(total(runs)['hours'])}, the jobs one after another, each with all of the above."
    yield (
        "counted: training steps, 5-nn evaluations during the training, final features, 5-nn and linear probe; not "
        "counted: preparing data, reading images from a slow disk, checkpoints, starting processes; a run that was "
        "interrupted counts whole."
    )
    marks = set(map(_mark, runs))
    if "*" in marks:
        yield "*: timed on a part of the batch (on less than a sub-batch if need be), scaled linearly in the images."
    if "!" in marks:
        yield "!: the whole batch does not fit into this GPU's memory: the run needs a larger one or a smaller batch."
    yield meter.describe()
