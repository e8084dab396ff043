"""Warm-ups: they grow within their budget, halve what does not fit, and scale to the whole batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.runs import CPU, tiny_spec
from wmse.errors import WmseError
from wmse.estimate import WarmUp
from wmse.estimate.plan import image_shape
from wmse.estimate.warm_up import FIRST_SIZE, measure
from wmse.power import PowerMeter


def no_power(tmp_path: Path) -> PowerMeter:
    return PowerMeter(CPU.device, powercap=tmp_path / "absent")


class Sleeper:
    """Something that takes 1 ms an image; its sizes are recorded."""

    def __init__(self, limit: int = 10**9) -> None:
        self.sizes: list[int] = []
        self.limit = limit

    def __call__(self, size: int) -> Callable[[], None]:
        if size > self.limit:
            raise torch.OutOfMemoryError("too large")
        self.sizes.append(size)
        return lambda: time.sleep(size / 1000)


def test_a_warm_up_grows_to_the_whole_batch_if_it_can(tmp_path: Path) -> None:
    sleeper = Sleeper()
    cost = measure(sleeper, 32, 2.0, no_power(tmp_path), CPU.device)
    assert (sleeper.sizes[0], cost.size, cost.full) == (FIRST_SIZE, 32, 32)
    assert 0.001 <= cost.seconds < 0.002
    assert cost.watts is None


def test_a_warm_up_stays_within_its_budget_and_gives_the_cost_per_image(tmp_path: Path) -> None:
    sleeper = Sleeper()
    began = time.perf_counter()
    cost = measure(sleeper, 100_000, 0.6, no_power(tmp_path), CPU.device, fit=lambda n: n - n % 32 if n >= 32 else n)
    assert time.perf_counter() - began < 1.5
    assert 32 <= cost.size < 600
    assert cost.size % 32 == 0  # whole sub-batches
    assert 0.001 <= cost.seconds < 0.002


def test_a_batch_that_does_not_fit_into_the_memory_is_halved(tmp_path: Path) -> None:
    cost = measure(Sleeper(limit=40), 1024, 1.0, no_power(tmp_path), CPU.device)
    assert cost.out_of_memory
    assert FIRST_SIZE < cost.size <= 40
    with pytest.raises(WmseError, match="not even 8 images"):
        measure(Sleeper(limit=4), 1024, 1.0, no_power(tmp_path), CPU.device)


def test_less_than_a_sub_batch_is_whitened_when_a_whole_one_takes_too_long(tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4", batch_size=512, w_size=256, embedding=128, benchmark="imagenet")
    warm_up = WarmUp(lambda _: CPU, 1e-3, no_power(tmp_path), tmp_path, lambda line: None)
    cost = warm_up.step(spec)
    assert cost.size == FIRST_SIZE
    assert cost.seconds > 0
    assert warm_up.step(replace(spec, seed=1)) is cost
    assert image_shape("imagenet") == (375, 500)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg"}
