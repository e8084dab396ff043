"""The figure of the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.results import GRAPH, PNG
from wmse.errors import DataError
from wmse.report import write_dag
from wmse.report.dag import direct, layers, parse_dot


def test_rules_stand_after_what_they_need() -> None:
    needs = parse_dot(GRAPH)
    assert list(needs) == ["all", "tables", "evaluate", "dag"]
    assert needs == {"all": {"tables", "evaluate", "dag"}, "tables": {"evaluate"}, "evaluate": set(), "dag": set()}
    assert layers(needs) == {"evaluate": 0, "tables": 1, "dag": 1, "all": 2}
    assert direct(needs) == {**needs, "all": {"tables", "dag"}}


@pytest.mark.parametrize("arrow", ["0 -> 2", "0 -> 0", "3 -> 9"])
def test_a_circle_or_an_arrow_to_no_rule_is_no_workflow(arrow: str) -> None:
    with pytest.raises(DataError, match="no workflow's graph"):
        parse_dot(GRAPH.replace("3 -> 0", f"3 -> 0\n{arrow}"))


def test_the_figure_of_the_rules_names_them_with_their_jobs(tmp_path: Path) -> None:
    write_dag(GRAPH, {"evaluate": 28}, tmp_path)
    assert (tmp_path / "plots/dag.png").read_bytes().startswith(PNG)
    with pytest.raises(DataError, match="no rule in the input"):
        write_dag("Traceback ...", {}, tmp_path)
