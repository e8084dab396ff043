"""Hooks and fixtures of all tests."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from builders.data import tiny_data
from builders.runs import make_job, tiny_spec
from builders.tensors import natural
from wmse.datasets import ArrayDataset
from wmse.runs.evaluate import evaluate
from wmse.training import pretrain

COUNTS: Counter[str] = Counter()  # what the tests in tests/faults inflicted, by kind


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the long tests as well (make test-faults, make test-learning)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "long: part of `make test-faults` or `make test-learning` only, because it takes minutes"
    )
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        # Workers, and the commands that they start, would else take each other's cores, where threads wait by spinning.
        cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        own = cores[int(worker.removeprefix("gw")) % workers :: workers]
        os.sched_setaffinity(0, own or cores)


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that is trained and evaluated; not to be changed."""
    job = make_job(tiny_spec(view_size=16, eval_resize=20), tiny_data(), tmp_path_factory.mktemp("finished"))
    pretrain(job)
    evaluate(job)
    return job.folder.path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 24 images of several sizes in three folders, and files that are no images."""
    for i, image in enumerate(natural(24, 40, 40)):
        height, width = 40 - i % 3 * 7, 40 - i % 2 * 9
        file = tmp_path / "photos" / ("cats", "dogs", "birds/small")[i % 3] / f"{i:02d}.{('png', 'jpg')[i % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()[:height, :width]).save(file)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("not looked at")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ.get("WMSE_TEST_THREADS", "1")))
