"""Stopping on request: a signal ends the training after the current step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

SAME_REQUEST = 2.0  # Seconds within which a repeated signal is the same request to stop.


class Stopped(Exception):
    """The run was interrupted by a signal after it had written a checkpoint."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(step, signal_number)
        self.step, self.signal = step, signal_number

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        return f"stopped by {name} after step {self.step}; the same command continues from there"


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second one acts at once.

    One request can arrive twice: a process group gets it, and a container engine of that group passes it on as well.
    So only a signal that comes later than that is a second one.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, _frame: object) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
