"""Hooks and fixtures of all tests."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from builders.data import tiny_data
from wmse.datasets import ArrayDataset

COUNTS: Counter[str] = Counter()  # what the tests in tests/faults inflicted, by kind


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the long tests as well (make test-faults, make test-learning)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "long: part of `make test-faults` or `make test-learning` only, because it takes minutes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(
                    pytest.mark.skip(reason="the long part: run by `make test-faults` and `make test-learning`")
                )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        terminalreporter.section("faults")
        terminalreporter.line(", ".join(f"{number:,} {kind}" for kind, number in sorted(COUNTS.items())))


@pytest.fixture
def counts() -> Counter[str]:
    """To be added to: counts["kills"] += 1; the sums are printed at the end."""
    return COUNTS


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long part runs, for tests that differ only in how much they try."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def data() -> ArrayDataset:
    return tiny_data()


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ.get("WMSE_TEST_THREADS", "1")))
