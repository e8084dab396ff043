"""The table: hours and energy as sums over the work, formats and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.runs import CPU, TINY, tiny_spec
from wmse.estimate import as_table, estimate_runs, notes, total
from wmse.estimate.table import RunEstimate, format_count, format_hours, format_number
from wmse.estimate.warm_up import KNN_TEST, Cost
from wmse.power import PowerMeter


def fake_warm_up(**seconds: float) -> Any:
    """Costs that are known in advance, 100 W each."""

    class Fake:
        def __getattr__(self, name: str) -> Callable[..., Cost]:
            return lambda spec, *_: Cost(seconds.get(name, 1e-15), 8, spec.batch_size, 100.0)

    return Fake()


def test_hours_and_energy_are_sums_over_the_work(tmp_path: Path) -> None:
    spec = tiny_spec("wmse-2", benchmark="fashion_mnist", epochs=3)  # evaluated after epochs 2 and 3
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(step=1.0))
    steps = 3 * (10_000 // 64)
    assert row.hours == pytest.approx(steps * 64 / 3600)
    assert row.evaluation_hours < 1e-6
    assert (row.ms_per_step, row.views_per_second) == (64_000, 2)
    assert row.kwh == pytest.approx(row.hours / 10)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(extraction=1.0))
    assert row.hours == pytest.approx(3 * 12_000 / 3600)
    assert row.evaluation_hours == pytest.approx(row.hours)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(knn=1.0))
    assert row.hours == pytest.approx(3 * 10_000 * 2_000 / KNN_TEST / 3600)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(linear=1.0))
    assert row.hours == pytest.approx(TINY["probe_epochs"] * 10_000 / 3600)


def test_finished_runs_are_left_out_of_the_sum(tmp_path: Path) -> None:
    specs = [tiny_spec("wmse-2", benchmark="fashion_mnist", seed=seed) for seed in (0, 1)]
    (tmp_path / "runs" / specs[0].run).mkdir(parents=True)
    (tmp_path / "runs" / specs[0].run / "result.json").write_text("{}")
    rows = estimate_runs(specs, tmp_path, tmp_path, fake_warm_up(step=1.0))
    assert [row.done for row in rows] == [True, False]
    whole = total(rows)
    assert (whole["runs"], whole["done"], whole["views"]) == (1, 1, rows[1].views)
    assert whole["hours"] == rows[1].hours
    assert "done" in as_table(rows).splitlines()[1]
    everything = [rows[0], replace(rows[1], done=True)]
    assert total(everything)["kwh"] == total(everything)["hours"] == 0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(999), "999"),
        (format_count(102_400_000), "102.4 M"),
        (format_count(97_000), "97 k"),
        (format_count(3.0749e9), "3.075 G"),
        (format_number(None), "—"),
        (format_number(0), "0"),
        (format_number(0.00042), "0.0004"),
        (format_number(0.01234), "0.0123"),
        (format_number(12345.6), "12,346"),
        (format_hours(0.01), "36 s"),
        (format_hours(0.2), "12.0 min"),
        (format_hours(3.4), "3.4 h"),
        (format_hours(124.8), "5.2 days"),
    ],
)
def test_formats(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_table_is_aligned_and_marks_what_was_scaled() -> None:
    times = {"ms_per_step": 10.0, "views_per_second": 5.0, "hours": 2.0, "evaluation_hours": 0.5, "kwh": 1.0}
    rows = [
        RunEstimate("whole", False, 10, 5, 1, 64, 64, **times),
        RunEstimate("a longer name", False, 10, 5, 1, 64, 32, **times),
        RunEstimate("baseline", False, 0, 0, 0, 64, hours=1.0, evaluation_hours=1.0, kwh=0.5),
    ]
    lines = as_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert ["10* " in line for line in lines] == [False, False, True, False, False]
    assert lines[-1].split() == ["sum", "of", "3", "20", "10", "5", "2", "2.5"]
    meter = PowerMeter(CPU.device, 100.0)
    assert any(line.startswith("*:") for line in notes(rows, meter))
    assert not any(line.startswith(("*:", "!:")) for line in notes(rows[:1], meter))
    assert any(line.startswith("!:") for line in notes([replace(rows[1], out_of_memory=True)], meter))
