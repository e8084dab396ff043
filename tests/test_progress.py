"""Progress: bars on a terminal, elsewhere lines now and then, with the time left, for everything that takes long."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from builders import ROOT
from builders.runs import make_job, tiny_spec
from wmse import progress
from wmse.datasets import SOURCES, ArrayDataset, prepare
from wmse.progress import beside_bars, progress_bar, tracked
from wmse.runs.evaluate import evaluate
from wmse.runs.verify import verify


class Stream(io.StringIO):
    """Standard error, which is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def error_output(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> Stream:
    """To be called in a test itself: between fixtures and tests, pytest puts its own in this place."""
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    return sys.stderr


def test_a_bar_is_on_a_terminal_only_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = error_output(monkeypatch, terminal=True)
    assert list(tracked("abcd", "image", "reading")) == [*"abcd"]
    assert "reading: 100%" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "<00:00" in terminal.getvalue()  # the time left
    with progress_bar(2048, "B", "getting", start=1024):
        pass
    assert "1.00k/2.00k" in terminal.getvalue()
    assert progress_bar(1, "step", shown=False).disable
    before = terminal.getvalue()
    assert list(tracked(["alone"], "image", "reading")) == ["alone"]
    assert terminal.getvalue() == before
    log = error_output(monkeypatch, terminal=False)
    assert list(tracked([1, 2], "image", "reading")) == [1, 2]
    assert log.getvalue() == ""
    with progress_bar(1, "step", shown=True):
        pass
    assert "0/1" in log.getvalue()


def test_a_log_has_a_line_now_and_then_of_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = error_output(monkeypatch, terminal=False), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar(100, "step", "training", start=20) as bar:
        for now[0] in (10.0, 29.0):
            bar.update(5)
        assert log.getvalue() == ""
        bar.set_description("epoch 1/5")
        bar.set_postfix_str("loss 1.5000")
        now[0] = 30.0
        bar.update(10)
        now[0] = 45.0
        bar.update(10)
        now[0] = 100.0
        bar.update(50)  # all
    assert log.getvalue() == "epoch 1/5: 40/100 step, 01:30 left, loss 1.5000\n"


def test_a_line_beside_a_bar_stands_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = error_output(monkeypatch, terminal=True)
    with progress_bar(4, "image", "reading"):
        before = len(terminal.getvalue())
        with beside_bars():
            print("a line", file=terminal)
        cleared, _, after = terminal.getvalue()[before:].partition("a line\n")
    assert cleared.strip("\r ") == ""  # the bar is wiped out
    assert "reading" in after  # and drawn again


def test_an_evaluation_shows_what_it_is_at_and_in_a_log_nothing(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = error_output(monkeypatch, terminal=True)
    for method in ("random", "pixels"):
        spec = tiny_spec(method)
        evaluate(make_job(spec, data, tmp_path / method))
        steps = spec.probe_epochs * 200 // spec.probe_batch_size
        for part, count in (("features", 2), ("5-nn", 1), ("linear probe", steps)):
            assert f"{spec.name}: {part}: 100%" in terminal.getvalue()
            assert f"{count}/{count}" in terminal.getvalue()
    quiet = error_output(monkeypatch, terminal=True)
    evaluate(make_job(spec, data, tmp_path / "quiet", progress_bar=False))
    assert quiet.getvalue() == ""
    log = error_output(monkeypatch, terminal=False)
    evaluate(make_job(spec, data, tmp_path / "log"))
    assert log.getvalue() == ""


def test_a_verification_counts_the_bytes_that_it_hashes(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare("fashion_mnist", tmp_path, log=lambda line: None)
    spec = tiny_spec("random")
    evaluate(make_job(spec, data, tmp_path / spec.run))
    sample = ROOT / "wmse/datasets" / SOURCES["fashion_mnist"].embedded.folder
    raw = [sample / name for name in SOURCES["fashion_mnist"].embedded.files]
    whole = sum(path.stat().st_size for path in [*raw, *prepared.folder.iterdir()])
    terminal = error_output(monkeypatch, terminal=True)
    assert verify([tmp_path / spec.run], tmp_path, tmp_path).problems == []
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert f"/{whole / 2**20:.1f}M" in last
    assert 99 <= int(last.partition("%")[0].split()[-1]) <= 100  # the manifest is read but not hashed
