"""Fixtures of the injected faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from builders.forked import Reference
from builders.runs import tiny_spec


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny_spec(), tmp_path_factory.mktemp("reference"))


@pytest.fixture
def fuzz(long: bool, counts: Counter[str]) -> Callable[..., None]:
    """Call a check on `few` drawn values, in the long part on `many` others each time; first on the `examples`.

    The examples are what once failed, or what nobody draws by chance.
    """

    def search(
        check: Callable[[Any], None], values: st.SearchStrategy[Any], few: int, many: int, examples: Any = ()
    ) -> None:
        def one(value: Any) -> None:
            counts["inputs"] += 1
            check(value)

        test = given(values)(one)
        for value in examples:
            test = example(value)(test)
        settings(
            max_examples=many if long else few,
            derandomize=not long,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(test)()

    return search
