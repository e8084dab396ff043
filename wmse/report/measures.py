"""What claims are judged by: figures of one run, by the names that the criteria use."""

from __future__ import annotations

import numpy as np

from wmse.config import parse_label
from wmse.errors import DataError
from wmse.report.compare import method_label
from wmse.report.paper import METRICS
from wmse.report.results import DIAGNOSTICS, Run, load_history
from wmse.runs.folder import HISTORY, RESULT

FIGURES = {**METRICS, **{name: heading for name, (heading, _) in DIAGNOSTICS.items()}}
FIGURES["effective_rank_share"] = "effective rank / k"


def method_name(label: str) -> str:
    """A method label as tables print it."""
    return method_label(*parse_label(label))


def value_of(run: Run, figure: str) -> float:
    """A figure of one run. Raises DataError if the run has none."""
    measured = run.measured
    if figure == "effective_rank_share" and "effective_rank" in measured:
        return measured["effective_rank"] / run.spec["embedding"]
    if figure not in measured:
        raise DataError(f"{run.path / RESULT}: has no '{figure}', which a claim needs: run `wmse evaluate {run.name}`")
    return measured[figure]


def knn_at(run: Run, share: float) -> float:
    """The 5-nn accuracy at the evaluated epoch nearest to a share of the training. Raises DataError."""
    _, epochs, knn = _evaluations(run)
    return float(knn[abs(epochs - share * run.epochs).argmin()])


def knn_after(run: Run, seconds: float) -> float:
    """The 5-nn accuracy after so many seconds of training, on a line between evaluations. Raises DataError.

    Before the first evaluation it is that of the first, after the last one that of the last.
    """
    times, _, knn = _evaluations(run)
    return float(np.interp(seconds, times, knn))


def training_seconds(run: Run) -> float:
    """Seconds of training until the last evaluation, without the evaluations. Raises DataError."""
    return float(_evaluations(run)[0][-1])


def _evaluations(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, epochs and 5-nn accuracies of the epochs that have one."""
    history = load_history(run).dropna(subset="knn5_top1").sort_values("epoch")
    if history.empty:
        raise DataError(
            f"{run.path / HISTORY}: has no 5-nn accuracy, which a claim needs: run `wmse pretrain {run.name}`"
        )
    return tuple(history[name].to_numpy() for name in ("seconds", "epoch", "knn5_top1"))
