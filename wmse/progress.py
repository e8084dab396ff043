"""Progress with the time left: a bar on a terminal, elsewhere a line now and then of what takes long."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY = 30.0  # Seconds.
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"


def progress_bar(total: int, unit: str, name: str = "", start: int = 0, shown: bool | None = None) -> tqdm | Lines:
    """A bar on standard error; `shown` None: lines unless it is a terminal. Bytes (unit "B") in powers of 1024."""
    from tqdm import tqdm  # here, because most commands need none

    scales = {"unit_scale": unit == "B", "unit_divisor": 1024}
    if shown is None and not sys.stderr.isatty():
        return Lines(total, unit, name, start, scales)
    return tqdm(
        total=total, initial=start, unit=unit, **scales, desc=name or None, disable=shown is False, dynamic_ncols=True
    )


class Lines:
    """What is used of tqdm's interface, for a log or a pipe: nothing for what is done before the first line is due."""

    disable = False

    def __init__(self, total: int, unit: str, name: str, start: int, scales: dict[str, Any]) -> None:
        self.total, self.unit, self.name, self.n, self.start, self.scales = total, unit, name, start, start, scales
        self.postfix = ""
        self.begun = self.last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to end."""

    def set_description(self, name: str, refresh: bool = False) -> None:
        self.name = name

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        self.postfix = text

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self.last < LINE_EVERY or self.n >= self.total:
            return
        from tqdm import tqdm

        self.last = now
        about = {"prefix": self.name, "unit": self.unit, "initial": self.start, "postfix": self.postfix, **self.scales}
        print(tqdm.format_meter(self.n, self.total, now - self.begun, bar_format=LINE, **about), file=sys.stderr)


def tracked(items: Sequence[T], unit: str, name: str) -> Iterator[T]:
    """The items, with a bar of how many have been dealt with, which of a single one would tell nothing."""
    with progress_bar(len(items), unit, name, shown=None if len(items) > 1 else False) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def beside_bars() -> Iterator[None]:
    """A line that is printed within stands between two states of the bars, not in one."""
    if "tqdm" not in sys.modules:  # so that there is no bar
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode():
        yield
