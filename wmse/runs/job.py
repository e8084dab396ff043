"""One run to be trained or evaluated: all that these two stages are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmse.config import RunSpec
from wmse.runs.folder import RunFolder

if TYPE_CHECKING:
    from wmse.datasets import Dataset
    from wmse.runtime import Runtime


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written, every so many seconds or (if given) epochs, and how many of them stay."""

    seconds: float = 600
    epochs: int | None = None
    keep: int = 2


@dataclass(frozen=True)
class Job:
    """A run with its data, its folder and the way it is computed.

    Attributes:
        preset: noted in the records.
        log: gets lines of text, among them one an epoch.
        progress_bar: None shows one on a terminal only.
        evaluated: what the encoder is evaluated on, if not `data` (`evaluate_on`).
    """

    spec: RunSpec
    data: Dataset
    folder: RunFolder
    runtime: Runtime
    preset: str = ""
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    log: Callable[[str], None] = print
    progress_bar: bool | None = None
    evaluated: Dataset | None = None

    @property
    def probe(self) -> Dataset:
        """What the encoder is evaluated on."""
        return self.evaluated or self.data
