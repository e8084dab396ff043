"""TensorBoard event files, written by the training itself.

TensorBoard's own writer has a thread, which a full disk ends with a traceback; then `add_scalar` raises or blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """Appends scalars to a new event file in `folder`.

    `purge_step` tells TensorBoard to drop what other files hold from that step on. Curves are also in history.csv, so a
    file that cannot be written ends no training: `log` gets one warning, and there are no more events.
    """

    def __init__(self, folder: Path, purge_step: int | None, log: Callable[[str], None]) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self.log, self.broken = log, False
        self._append({"file_version": "brain.Event:2"})
        if purge_step:
            self._append({"step": purge_step, "session_log": {"status": 1}})  # SessionLog.START

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write all `values` of a step at once."""
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._append({"step": step, "summary": {"value": scalars}})

    def _append(self, content: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self.broken:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                RecordWriter(file).write(Event(wall_time=time.time(), **content).SerializeToString())
        except OSError as error:
            self.broken = True
            self.log(f"warning: {self.path}: {error.strerror}; going on without TensorBoard's events")
