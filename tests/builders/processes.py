"""Several processes of one run, forked from the test, so that none of them waits for imports."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

from builders.forked import start, wait
from wmse.distributed import World, join


def start_world(processes: int, work: Callable[[World], object], folder: Path) -> list[int]:
    """The process ids of `processes` children, of which each calls `work`; what they print is in `folder`/RANK."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    every = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }

    def child(rank: int) -> None:
        os.environ.update({key: str(value) for key, value in {**every, "RANK": rank}.items()})
        with join("cpu", lambda error: print(f"wmse: error: {error}")) as world:
            work(world)

    folder.mkdir(parents=True, exist_ok=True)
    children = [start(lambda rank=rank: child(rank), folder / str(rank)) for rank in range(processes)]
    STORES.append(store)
    return children


STORES: list[TCPStore] = []  # they serve as long as the tests run


def run_world(processes: int, work: Callable[[World], object], folder: Path, limit: int = 600) -> None:
    """Call `work` in every process; AssertionError with what they printed if one of them fails, or hangs."""
    children = start_world(processes, work, folder)

    def hung(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)

    previous = signal.signal(signal.SIGALRM, hung)
    signal.alarm(limit)
    try:
        ends = [wait(child) for child in children]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    printed = [(folder / str(rank)).read_text() for rank in range(processes)]
    assert ends == [0] * processes, "\n".join([f"exit statuses {ends}", *printed])
