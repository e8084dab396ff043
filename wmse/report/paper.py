"""The paper's numbers, read from `paper.csv`: one row per number, each with its status.

The statuses say how far a number can be trusted; every table and plot carries them along:
confirmed (quoted from the paper or read in the authors' repository), single (printed by one text that copies the
paper), recalled (from memory, not yet checked against the PDF), missing (the paper has it, we do not know it).
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from wmse.errors import DataError
from wmse.runs.record import METRICS

PAPER_FILE = Path(__file__).with_name("paper.csv")
MARKS = {"confirmed": "", "single": "†", "recalled": "‡", "missing": ""}


@dataclass(frozen=True)
class PaperValue:
    """One number of the paper, in percent; `text` keeps the digits as printed, empty where missing."""

    table: int
    benchmark: str
    method: str
    d: int | None
    epochs: int | None
    encoder: str
    metric: str
    text: str
    status: str
    source: str
    note: str

    @property
    def value(self) -> float | None:
        return float(self.text) if self.text else None

    @property
    def marked(self) -> str:
        """The value as tables print it: with the mark of its status."""
        return self.text + MARKS[self.status] if self.text else "missing"


def load_paper(path: Path = PAPER_FILE) -> list[PaperValue]:
    """All numbers of the paper, in file order. Raises DataError naming file, line and column."""
    with open(path, encoding="utf-8", newline="") as file:
        return [_parse(row, f"{path}, line {line}") for line, row in enumerate(csv.DictReader(file), start=2)]


def _parse(row: dict[str, str], where: str) -> PaperValue:
    try:
        value = PaperValue(
            table=int(row["table"]),
            benchmark=row["benchmark"],
            method=row["method"],
            d=int(row["d"]) if row["d"] else None,
            epochs=int(row["epochs"]) if row["epochs"] else None,
            encoder=row["encoder"],
            metric=row["metric"],
            text=row["value"],
            status=row["status"],
            source=row["source"],
            note=row["note"],
        )
        number = value.value
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a row of the paper's numbers ({error})") from None
    if value.metric not in METRICS:
        raise DataError(f"{where}: metric '{value.metric}' is not one of {', '.join(METRICS)}")
    if value.status not in MARKS:
        raise DataError(f"{where}: status '{value.status}' is not one of {', '.join(MARKS)}")
    if (number is None) != (value.status == "missing"):
        raise DataError(f"{where}: a value is empty exactly if its status is 'missing'")
    if number is not None and not (math.isfinite(number) and 0 <= number <= 100):
        raise DataError(f"{where}: value {value.text} is not a percentage")
    return value
