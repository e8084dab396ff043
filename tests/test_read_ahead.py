"""Results that threads compute ahead: their order, the memory that they take, errors, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wmse.read_ahead import ReadAhead

THREADS = 4


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def result(item: int, size: int = 100) -> np.ndarray:
    time.sleep(item % 3 / 1000)  # later ones are often done first
    return np.full(size, item, np.uint8)


@pytest.mark.parametrize("limit", [1, 250, 1 << 20])
def test_results_come_in_the_order_of_the_items_within_the_limit(pool: ThreadPoolExecutor, limit: int) -> None:
    begun: list[int] = []
    ahead = ReadAhead(pool, THREADS, lambda item: begun.append(item) or result(item), iter(range(120)), limit)
    for item in range(120):
        assert ahead.take(item)[0] == item
        assert len(begun) - item <= limit // 100 + 1 + 2 * THREADS
    assert sorted(begun) == list(range(120))
    assert not ahead.begins_with(120)


def test_threads_stop_at_the_limit_and_go_on_when_results_are_taken(pool: ThreadPoolExecutor) -> None:
    begun, finished = [], []

    def work(item: int) -> np.ndarray:
        begun.append(item)
        finished.append(item)
        return result(item)

    def wait_for(count: int) -> None:
        while len(finished) < max(count, len(begun)):
            time.sleep(0.001)

    ahead = ReadAhead(pool, THREADS, work, range(100), 1000)
    wait_for(10)
    assert len(begun) <= 10 + 2 * THREADS
    for item in range(30):
        ahead.take(item)
    wait_for(40)
    assert len(begun) <= 40 + 2 * THREADS


def test_an_error_is_raised_where_its_result_is_taken_and_again(pool: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(pool, THREADS, lambda item: result(item // (item != 2)), range(4), 1 << 20)
    ahead.take(0)
    ahead.take(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ahead.take(2)


def test_what_was_not_announced_is_refused(pool: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(pool, THREADS, result, range(3), 1 << 20)
    with pytest.raises(ValueError, match="1 is not what was announced"):
        ahead.take(1)
    assert ahead.take(0)[0] == 0


def test_closed_it_begins_nothing_more(pool: ThreadPoolExecutor) -> None:
    begun, release = [], threading.Event()

    def work(item: int) -> np.ndarray:
        begun.append(item)
        release.wait(60)
        return result(item)

    ahead = ReadAhead(pool, THREADS, work, range(99), 99)
    while len(begun) < THREADS:
        time.sleep(0.001)
    ahead.close()
    release.set()
    pool.shutdown()
    assert sorted(begun) == list(range(THREADS))
