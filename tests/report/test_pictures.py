"""The map of test images in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.results import edit, make_run
from wmse.errors import DataError
from wmse.report import write_plots
from wmse.report.pictures import read_map
from wmse.report.results import load_run

POINTS = "0 1.5 -2\n3 0.1 0.2\n9 -1 4e1"


def test_the_map_shows_one_panel_for_each_method_that_has_one(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, method=method) for method in ("wmse", "simclr", "pixels")]
    edit(runs[0], "map", {"shares": "0.5 0.2", "points": POINTS})
    edit(runs[1], "map", {"shares": "0.5 0.2", "points": POINTS})
    edit(runs[2], "map")
    write_plots(runs, tmp_path / "out")
    svg = (tmp_path / "out/plots/map.svg").read_text(encoding="utf-8")
    assert [name for name in ("CIFAR-10", "W-MSE 4", "SimCLR, d=4") if f"<!-- {name} -->" not in svg] == []
    assert "Raw pixels" not in svg
    labels, points = read_map(load_run(runs[0]))
    assert labels == [0, 3, 9]
    np.testing.assert_array_equal(points, [[1.5, -2], [0.1, 0.2], [-1, 40]])


@pytest.mark.parametrize("wrong", [{}, {"points": 3}, {"points": ""}, {"points": "1 2"}, {"points": "1 2 nan"}])
def test_a_map_that_cannot_be_read_names_the_file(tmp_path: Path, wrong: dict[str, object]) -> None:
    run = make_run(tmp_path)
    edit(run, "map", wrong)
    with pytest.raises(DataError, match=r"result\.json: key 'map' cannot be read .*: run `wmse evaluate` again"):
        read_map(load_run(run))
