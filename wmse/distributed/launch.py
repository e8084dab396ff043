"""The processes of one run on this host: copies of a command that meet each other (torch.distributed.elastic)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes

from wmse.distributed.world import GONE, OURS
from wmse.errors import LOST_EXIT, STOPPED_EXIT
from wmse.training.signals import stop_on_signals


def launch(arguments: Sequence[str], processes: int, threads: int, say: Callable[[str], None]) -> int:
    """Run `wmse ARGUMENTS` as several processes of one run; returns the exit status of them all.

    A signal to stop is passed on to all of them. `say` gets a line when one has died without a word.

    Args:
        threads: of all processes together.
    """
    logging.disable()  # the launcher's account of what each process has reported itself
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    every = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": OURS,
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with tempfile.TemporaryDirectory(prefix="wmse-launch-") as folder:
        context = start_processes(
            OURS,
            sys.executable,
            dict.fromkeys(range(processes), ("-m", "wmse", *arguments)),
            {rank: {**every, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
            DefaultLogsSpecs(log_dir=folder),
        )
        with stop_on_signals() as received:
            ends = _wait(context, received)
    return _status(ends, received, say)


def _wait(context: PContext, received: Collection[int]) -> dict[int, int]:
    """The exit status of every process that failed; once one has, the others are ended."""
    asked = False
    while not (result := context.wait(timeout=0.5, period=0.1)):
        if received and not asked:
            asked = True
            for process in context.pids().values():
                os.kill(process, signal.SIGTERM)
    return {rank: failure.exitcode for rank, failure in result.failures.items()}


def _status(ends: dict[int, int], received: Collection[int], say: Callable[[str], None]) -> int:
    """The exit status of the whole, from those of the processes that failed."""
    if STOPPED_EXIT in ends.values():
        return STOPPED_EXIT
    # Those that are ended because another has failed get SIGTERM.
    killed = {rank: -status for rank, status in ends.items() if status < 0 and status != -signal.SIGTERM}
    if killed:
        died = ", ".join(f"process {rank} ({signal.Signals(number).name})" for rank, number in sorted(killed.items()))
        say(
            f"wmse: error: a process of the run was killed: {died}: the same command continues from the last checkpoint"
        )
    elif received and set(ends.values()) == {-signal.SIGTERM}:  # before they could take note of it
        say("stopped before the first step; the same command starts again")
        return STOPPED_EXIT
    elif ends and set(ends.values()) <= {LOST_EXIT, -signal.SIGTERM}:
        say(f"wmse: error: the processes lost contact with one that {GONE}")
    return 1 if ends else 0
