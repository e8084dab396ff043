"""Progress bars with the time left: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def progress_bar(total: int, unit: str, name: str = "", start: int = 0, shown: bool | None = None) -> tqdm:
    """A bar on standard error; `shown` None: if that is a terminal. Of bytes (unit "B") in powers of 1024."""
    from tqdm import tqdm  # here, because most commands need none

    scaled = unit == "B"
    return tqdm(
        total=total,
        initial=start,
        unit=unit,
        unit_scale=scaled,
        unit_divisor=1024,
        desc=name or None,
        disable=None if shown is None else not shown,
        dynamic_ncols=True,
    )


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
