"""The self-check: its plain computation against the textbook's, and that it finds what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wmse import selfcheck
from wmse.cli import main


def test_a_working_installation_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--results", str(tmp_path / "new/results"), "--data-root", str(tmp_path)]
    assert main(["selfcheck", *folders]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert "loss and gradient equal plain loops" in printed
    assert "GPU" in printed
    assert list(tmp_path.iterdir()) == []  # it leaves nothing
    assert main(["selfcheck", *folders, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_plain_whitening_gives_mean_zero_and_covariance_one() -> None:
    x = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = torch.tensor(selfcheck.plain_whiten(x.tolist()), dtype=torch.float64)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(z.T), torch.eye(4, dtype=torch.float64))


def fails_with(words: str, tmp_path: Path) -> None:
    lines: list[str] = []
    assert selfcheck.selfcheck(tmp_path, tmp_path, lines.append, quiet=True) == 1
    (line,) = lines
    assert line.startswith("FAILED")
    assert words in line


def test_wrong_arithmetic_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whiten = selfcheck.whiten
    monkeypatch.setattr(selfcheck, "whiten", lambda x: whiten(x) * (1 + 1e-6))
    fails_with("whitening: differs", tmp_path)


def test_a_gradient_that_misses_a_view_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = selfcheck.wmse_loss
    monkeypatch.setattr(
        selfcheck, "wmse_loss", lambda x, w_size: loss(torch.stack([x[0], x[1].detach()]), w_size=w_size)
    )
    fails_with("gradient: differs", tmp_path)


def test_damaged_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmse.datasets.build.file_digest", lambda path, algorithm: "0" * 64)
    fails_with(f"sha256 is {'0' * 64}, expected", tmp_path)


def test_a_folder_that_is_no_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    lines: list[str] = []
    assert selfcheck.selfcheck(tmp_path / "results", tmp_path, lines.append) == 1
    assert any(line.startswith("FAILED  results") and "cannot be written" in line for line in lines)
