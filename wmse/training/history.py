"""What a training has done so far: the finished epochs, which are the lines of history.csv, and the current one."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class EpochRecord:
    """One line of history.csv.

    `seconds` is the run's training time so far, without evaluations; `knn5_top1` is None in epochs without one.
    """

    epoch: int
    step: int
    views: int
    seconds: float
    loss: float
    lr: float
    views_per_second: float
    embedding_std: float
    effective_rank: float
    knn5_top1: float | None
    peak_memory_mb: float

    def describe(self, epochs: int) -> str:
        """The epoch in one line of text, as one of `epochs`."""
        knn = f", 5-nn {self.knn5_top1:.2f} %" if self.knn5_top1 is not None else ""
        return (
            f"epoch {self.epoch}/{epochs}, step {self.step}, loss {self.loss:.4f}, lr {self.lr:.2e}, "
            f"{self.views_per_second:.0f} views/s, spread {self.embedding_std:.3f}, "
            f"rank {self.effective_rank:.1f}{knn}"
        )


@dataclass
class EpochSoFar:
    """The current epoch: sums over its steps, and once the last one is taken, how far its embeddings are from collapse.

    `loss_sum` is a number, or after a step a scalar in float64 on the device, for which the host need not wait.
    """

    loss_sum: Tensor | float = 0.0
    seconds: float = 0.0
    embedding_std: float | None = None
    effective_rank: float | None = None


@dataclass
class Progress:
    """Where a run is, apart from weights and optimiser. An epoch is finished when its record is in the history."""

    step: int = 0
    resumed: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    epoch: EpochSoFar = field(default_factory=EpochSoFar)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Progress:
        """From what `dataclasses.asdict` gave."""
        history = [EpochRecord(**record) for record in saved["history"]]
        return cls(saved["step"], saved["resumed"], history, EpochSoFar(**saved["epoch"]))

    def summary(self) -> dict[str, Any]:
        """The block `pretrain` of the records of a finished run."""
        last = self.history[-1]
        return {
            "epochs": last.epoch,
            "steps": last.step,
            "views": last.views,
            "views_per_second": round(last.views / last.seconds, 1),
            "wall_seconds": round(last.seconds, 1),
            "peak_memory_bytes": round(max(record.peak_memory_mb for record in self.history) * 2**20),
            "final_loss": last.loss,
            "embedding_std": last.embedding_std,
            "effective_rank": last.effective_rank,
            "resumed": self.resumed,
        }


def history_csv(history: list[EpochRecord]) -> str:
    """The history as CSV; a value that was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[column.name for column in fields(EpochRecord)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in history)
    return text.getvalue()
