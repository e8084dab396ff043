"""Bytes, values and files that no honest writer makes, and what may become of them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import signal
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from wmse.errors import LONGEST_MESSAGE, WmseError
from wmse.files import content_digest

HANG = 30  # seconds, after which an input counts as one that never ends


class Hang(BaseException):
    """No handler of ours catches it."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """Time of the CPU for what computes without end, and ten times as much by the clock for what waits without end."""

    def stop(number: int, frame: object) -> None:
        raise Hang(f"no end after {HANG} s")

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, HANG), signal.ITIMER_REAL: (signal.SIGALRM, 10 * HANG)}
    previous = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def outcome(act: Callable[[], Any], name: str = "") -> Any:
    """The result of `act`, or its WmseError, whose message must be of reasonable length and hold `name`."""
    with deadline():
        try:
            return act()
        except WmseError as error:
            message = str(error)
            assert name in message
            assert 0 < len(message.strip()) <= LONGEST_MESSAGE
            return error


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- bytes and values -------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from(
        [bytes(4), bytes(8), b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\n", b","]
    ),
)


@st.composite
def mutated(draw: st.DrawFn, *seeds: bytes) -> bytes:
    """One of `seeds` with up to four places changed, inserted, removed, repeated or cut off."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "change", "insert", "remove", "repeat", "cut"])):
            case "change":
                piece = draw(PIECES)
                content[at : at + len(piece)] = piece
            case "insert":
                content[at:at] = draw(PIECES)
            case "remove":
                del content[at : at + length]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.integers(1, 3))
            case "cut":
                del content[at:]
    return bytes(content)


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan]),
    st.floats(),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../../x", "/x", "\0", "é\u2028\ud800", "* 2", "* 9e9", "nan", "1e999", "true", "x" * 5000]
    ),
    st.sampled_from(
        ["9" * 5000, "* " + "9" * 400, "wmse-2", "wmse-" + "9" * 5000, "cifar10", "cholesky", "seed0", "=", "\n"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, seed: dict[str, Any]) -> dict[str, Any]:
    """`seed` with one to three of its values, at any depth, replaced or removed."""
    content = copy.deepcopy(seed)
    for path in draw(st.lists(st.sampled_from(list(places(seed))), min_size=1, max_size=3)):
        parent: Any = content
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took it away
            for key in path[:-1]:
                parent = parent[key]
            if draw(st.integers(0, 4)):
                parent[path[-1]] = draw(VALUES)
            else:
                del parent[path[-1]]
    return content


def as_json(content: Any, seal: bool = False) -> str:
    """As JSON, with numbers of any length; `seal` gives it the digest without which nothing else would be looked at."""
    sys.set_int_max_str_digits(0)
    try:
        if seal and isinstance(content, dict):
            content = {**content, "sha256": content_digest(content)}
        return json.dumps(content)
    finally:
        sys.set_int_max_str_digits(4300)


# --- files ------------------------------------------------------------------------------------------------------------


class Canary:
    """Its pickle would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def idx(*sizes: int, values: int) -> bytes:
    """A file in the form of MNIST that announces these sizes and holds so many bytes."""
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + bytes(values)


def resized(header: bytes, size: int) -> bytes:
    """The last block of a tar header with another size (in the form that allows for negative ones) and its checksum."""
    block = bytearray(header[-512:])
    block[124:136] = bytes([128 if size >= 0 else 255]) + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return header[:-512] + bytes(block)


def circle() -> bytes:
    """A member of negative size, after which `tarfile` would read the same header for ever."""
    return resized(tarfile.TarInfo("top/a").tobuf(), -512) + bytes(2048)


def picture(mode: str, form: str, size: tuple[int, int] = (9, 7)) -> bytes:
    """An image file of one colour in any of Pillow's modes and formats."""
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, form)
    return buffer.getvalue()
