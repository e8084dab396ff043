"""A training on several GPUs: what is counted of its step, and the model of its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders.runs import tiny_spec
from wmse.cli import main
from wmse.config import RunSpec
from wmse.estimate.scaling import AGREEMENTS, BUCKET, Speeds, count_step, scale_runs
from wmse.methods import build_method

COUNTS = {"pretrain": 1000, "train": 1000, "test": 100}
NORMS = 2 * 20 + 1  # The batch norms of a ResNet-18, once a view, and that of the head.


def parameters(spec: RunSpec) -> int:
    """Bytes of the parameters that are trained."""
    return 4 * sum(p.numel() for p in build_method(spec, 0).parameters() if p.requires_grad)


def channels(spec: RunSpec) -> int:
    """Of all batch norms in a step: the encoder has five of each of its widths, once a view, and the head one."""
    return 2 * spec.width * 5 * (1 + 2 + 4 + 8) + spec.head_hidden


def test_bytes_and_collectives_of_a_step() -> None:
    spec = tiny_spec("wmse-2")
    size, statistics = parameters(spec), channels(spec)
    assert size < BUCKET
    for processes in (1, 2):  # each has sub-batches of its own
        count = count_step(spec, COUNTS, processes)
        others = processes - 1
        assert count.received == others * (8 * statistics + 2 * (size + 8 * statistics) / processes)
        assert count.collectives == others * (2 * NORMS + 1 + AGREEMENTS)
    embeddings = 4 * 2 * spec.batch_size * spec.embedding
    gathered = count_step(spec, COUNTS, 4)
    assert gathered.received == 3 * (8 * statistics + (2 * (size + 8 * statistics) + 3 * embeddings) / 4)
    assert gathered.collectives == 2 * NORMS + 1 + 2 + AGREEMENTS


def test_operations_and_memory_are_those_of_the_share() -> None:
    one, two = (count_step(tiny_spec("wmse-2", width=16), COUNTS, processes) for processes in (1, 2))
    assert two.operations == pytest.approx(one.operations / 2, rel=0.01)
    assert two.memory < one.memory
    # Six operations for each weight of a convolution, place, image and view; but four in the stem, whose input needs no
    # gradient: 27 weights for each of 16 channels at 8 x 8 places.
    stem = 2 * 64 * 4 * 27 * 16 * 64
    wider = count_step(tiny_spec("wmse-2", width=32), COUNTS, 1)
    assert (wider.operations - 2 * stem) / (one.operations - stem) == pytest.approx(4, rel=0.05)


def scaled(spec: RunSpec, gpus: list[int], **speeds: Any) -> list[Any]:
    given = Speeds(**{"tflops": None, "bandwidth": 1e9, "latency": 1e-9, "decoding": None, **speeds})

    class WarmUp:
        def step(self, spec: RunSpec) -> Any:
            return type("Cost", (), {"seconds": 0.5})

    return list(scale_runs([spec, tiny_spec("random")], gpus, Path("nowhere"), given, WarmUp()))


def test_the_largest_part_of_a_step_is_its_limit() -> None:
    spec = tiny_spec("wmse-2", benchmark="imagenet100_mini")
    one, two = scaled(spec, [1, 2])
    assert (one.limit, one.step_seconds) == ("arithmetic", 0.5 * 64)
    assert two.step_seconds == pytest.approx(0.5 * 32)
    assert two.hours == pytest.approx(two.steps * 0.5 * 32 / 3600)
    (slow,) = scaled(spec, [2], bandwidth=two.count.received / 1e9 / 100)
    assert (slow.limit, slow.step_seconds) == ("network", pytest.approx(100 + 16))
    (late,) = scaled(spec, [2], latency=1e6)
    assert (late.limit, late.step_seconds) == ("network", pytest.approx(late.count.collectives + 16))
    (starved,) = scaled(spec, [2], decoding=1.0)  # while the GPU works
    assert (starved.limit, starved.step_seconds) == ("decoding", 32)
    (in_memory,) = scaled(tiny_spec("wmse-2"), [2], decoding=1.0)
    assert in_memory.limit == "arithmetic"
    (assumed,) = scaled(spec, [1], tflops=2.0)
    assert assumed.step_seconds == pytest.approx(assumed.count.operations / 2e12)


def test_a_number_that_does_not_divide_the_batch_is_said_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(
        "preset: quick\nexperiments: [{benchmarks: [fashion_mnist], methods: [wmse-2, random]}]\n"
    )
    command = ["estimate", "--root", str(tmp_path), "--data-root", str(tmp_path), "--gpus", "2", "3", "--tflops", "1"]
    assert main(command) == 0
    head, two, three, _, assumed, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("run ")
    assert two.split()[:2] == ["fashion_mnist/wmse-2/seed0", "2"]
    assert three.endswith("the batch cannot be divided so")
    assert (
        assumed == "ASSUMED, not measured: tflops 1 TFLOP/s a GPU, bandwidth 25 GB/s a GPU, latency 50 us a collective"
    )
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["count"] is None for row in content["runs"]] == [False, True]
