"""Results that threads compute before they are asked for, in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What says how many bytes it takes, as tensors and arrays do."""

    nbytes: int


Item = TypeVar("Item")
Result = TypeVar("Result", bound=Sized)


class ReadAhead(Generic[Item, Result]):
    """The results of `work` on `items` in their order, which one thread takes while others compute.

    Args:
        items: none of them None; the next one is asked for under a lock, by any thread.
        limit: no further work begins while the results that wait to be taken have so many bytes together. So they take
            at most this and two results for each of the `threads`.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        threads: int,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        limit: int,
    ) -> None:
        self._pool, self._work, self._items = pool, work, iter(items)
        self._most_busy, self._limit = 2 * threads, limit
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._busy = self._held = 0  # works that are not finished; bytes of results that are, and have not been taken
        with self._lock:
            self._submit()

    def begins_with(self, item: Item) -> bool:
        """Whether `item` is the next to be taken."""
        return bool(self._waiting) and self._waiting[0][0] == item

    def take(self, item: Item) -> Result:
        """The result of the next item, which must be `item`; raises what its work raised."""
        if not self.begins_with(item):
            raise ValueError(f"{item} is not what was announced")
        result = self._waiting[0][1].result()
        with self._lock:
            self._waiting.popleft()
            self._held -= result.nbytes
            self._submit()
        return result

    def close(self) -> None:
        """Begin no further work."""
        with self._lock:
            self._items = iter(())
            for _, future in self._waiting:
                future.cancel()

    def _submit(self) -> None:
        """As much work as is allowed; if nothing waits, at least one, so that there is always something to take."""
        while self._busy < self._most_busy and self._held < self._limit:
            item = next(self._items, None)
            if item is None:
                return
            self._busy += 1
            self._waiting.append((item, self._pool.submit(self._run, item)))

    def _run(self, item: Item) -> Result:
        size = 0
        try:
            result = self._work(item)
            size = result.nbytes
            return result
        finally:
            with self._lock:
                self._busy -= 1
                self._held += size
                self._submit()
