"""Shared by the tests: a small synthetic benchmark in memory, tiny run specifications, and where real data may lie."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmse.config import RunSpec, make_spec
from wmse.datasets import ArrayDataset, ArraySplit
from wmse.runs.folder import RunFolder
from wmse.runs.job import Job
from wmse.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
CPU = Runtime(torch.device("cpu"), channels_last=False)

COUNTS: Counter[str] = Counter()  # what the tests in tests/faults inflicted, by kind


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long part of tests/faults as well (make test-faults)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: part of `make test-faults` only, because it takes minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="the long part: run by `make test-faults`"))


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


# 8-pixel views of a narrow network: a step takes milliseconds, through the same code as the paper's recipe.
TINY: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "embedding": 8,
    "w_size": 32,
    "width": 4,
    "head_hidden": 16,
    "view_size": 8,
    "eval_resize": 8,
    "warmup_iterations": 3,
    "lr_drops": [1],
    "eval_every": 2,
    "eval_every_final": 1,
    "probe_epochs": 5,
    "probe_batch_size": 50,
    "precision": "fp32",
}


def make_images(n: int, seed: int) -> ArraySplit:
    """n images of ten classes that a classifier can tell apart: a class colour under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    colour = np.random.default_rng(0).integers(0, 256, (10, 3, 1, 1))
    noise = rng.integers(-60, 60, (n, 3, 32, 32))
    return ArraySplit(labels.astype(np.int64), images=np.clip(colour[labels] + noise, 0, 255).astype(np.uint8))


def tiny_data() -> ArrayDataset:
    """200 training and 60 test images in the shape of CIFAR-10."""
    train = make_images(200, 1)
    return ArrayDataset(pretrain=train, train=train, test=make_images(60, 2))


@pytest.fixture
def data() -> ArrayDataset:
    return tiny_data()


def tiny_spec(label: str = "wmse-2", seed: int = 0, benchmark: str = "cifar10", **overrides: Any) -> RunSpec:
    """A run of the tiny configuration."""
    return make_spec(f"{benchmark}/{label}", seed, [TINY, overrides])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_job(spec: RunSpec, data: Any, out: Path, runtime: Runtime = CPU, **settings: Any) -> Job:
    """A run in the folder `out` that is computed on the CPU and says nothing, unless told otherwise."""
    return Job(spec, data, RunFolder(out), runtime, **{"log": lambda line: None, **settings})
