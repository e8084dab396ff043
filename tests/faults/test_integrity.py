"""A bit that flips on disk, in any file that a result rests on: `wmse verify` names the file, and no other."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builders.runs import tiny_spec
from wmse.cli import main
from wmse.errors import DataError
from wmse.files import write_sealed_json
from wmse.report.results import load_run
from wmse.runs.verify import verify

KINDS = (
    "result.json",
    "pretrain.json",
    "encoder.safetensors",
    "history.csv",
    "checkpoints/*.pt",
    "train-images.npy",
    "test-labels.npy",
    "raw",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data, its raw files, and one run with a checkpoint of the same name as its digest."""
    folder = tmp_path_factory.mktemp("finished")
    spec = tiny_spec("wmse-2", benchmark="fashion_mnist", epochs=1, lr_drops=[], batch_size=512)
    out = folder / "results/runs" / spec.run
    common = ["--spec", json.dumps(spec.compact()), "--data-root", str(folder / "data"), "--out", str(out)]
    for command in (["prepare", "fashion_mnist", *common[2:4]], ["pretrain", *common], ["evaluate", *common]):
        assert main(command) == 0
    state = (out / "encoder.safetensors").read_bytes()[::-1]
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / f"step-000000019-{hashlib.sha256(state).hexdigest()[:16]}.pt").write_bytes(state)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def run_of(folder: Path) -> Path:
    return next(folder.glob("results/runs/*/*/*"))


def command(folder: Path, *arguments: str) -> list[str]:
    return ["verify", "--results", str(folder / "results"), "--data-root", str(folder / "data"), *arguments]


def flip_a_bit(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[generator.randrange(128, len(content))] ^= 1 << generator.randrange(7)  # not the padding of an .npy header
    path.write_bytes(content)


def test_what_was_written_verifies(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(finished)) == 0
    line = capsys.readouterr().out
    for part in (
        "1 prepared data",
        "1 raw data",
        "1 checkpoints",
        "1 encoder",
        "1 history.csv",
        "1 result.json",
    ):
        assert part in line
    assert main(command(finished, str(run_of(finished)))) == 0
    assert main(command(finished, str(finished / "nowhere"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_wherever_it_is(
    kind: str, copy: Path, counts: Counter[str], long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "raw":
        from wmse.datasets import fashion_mnist

        sample = Path(fashion_mnist.__file__).with_name("fashion_mnist_sample")
        shutil.copytree(sample, copy / "fashion_mnist_sample")
        monkeypatch.setattr("wmse.datasets.build.__file__", str(copy / "build.py"))  # which it lies beside
        path = copy / "fashion_mnist_sample/train-images-idx3-ubyte.gz"
    else:
        path = next(copy.rglob(kind))
    original = path.read_bytes()
    generator = random.Random(kind)
    for _ in range(20 if long else 5):
        flip_a_bit(path, generator)
        findings = verify([], copy / "data", copy / "results")
        assert [line for line in findings.problems if str(path) in line], path
        assert [line for line in findings.problems if str(path) not in line] == []
        path.write_bytes(original)
        counts["faults"] += 1
    assert verify([], copy / "data", copy / "results").problems == []


def test_a_lost_file_a_swapped_run_and_other_data_are_found(
    copy: Path, counts: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(copy)
    (run / "encoder.safetensors").rename(copy / "kept")
    moved = run.with_name("seed1-00000000")
    shutil.copytree(run, moved)
    result = json.loads((run / "result.json").read_text())
    result["data"]["digest"] = "sha256:other"
    write_sealed_json(run / "result.json", result)
    counts["faults"] += 3
    assert main(command(copy)) == 1
    seen = capsys.readouterr()
    assert f"{run}/encoder.safetensors: is missing: run `snakemake --cores all`" in seen.out
    assert f"{moved}/pretrain.json: belongs to the run fashion_mnist/wmse-2/seed0-" in seen.out
    assert f"{run}/result.json: was computed on data with digest sha256:other" in seen.out
    assert "5 problems" in seen.err  # the copy lacks its encoder too, and its result.json is in the wrong place


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("sha256", "0" * 64, "was changed after it was written"),
        ("spec_hash", "0" * 64, "key 'spec_hash' is 00000000, but the hash of 'spec' is"),
        (
            "run",
            "fashion_mnist/wmse-2/seed1-00000000",
            "key 'run' is fashion_mnist/wmse-2/seed1-00000000, which does not",
        ),
        ("spec", {"benchmark": "cifar10"}, "key 'spec' is no specification of this version"),
        ("spec_hash", None, "key 'spec_hash' must be of type str, not null"),
    ],
)
def test_evaluation_verification_and_report_refuse_a_record_for_the_same_reason(
    key: str, value: Any, reason: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(copy)
    spec = json.loads((run / "result.json").read_text())["spec"]
    for name in ("pretrain.json", "result.json"):
        record = {**json.loads((run / name).read_text()), key: value}
        (run / name).write_text(json.dumps(record)) if key == "sha256" else write_sealed_json(run / name, record)
    first, second, *_ = verify([run], copy / "nowhere", copy).problems
    assert first.startswith(f"{run}/pretrain.json: {reason}")
    assert second.startswith(f"{run}/result.json: {reason}")
    with pytest.raises(DataError) as caught:
        load_run(run)
    assert str(caught.value) == second
    assert main(["evaluate", "--spec", json.dumps(spec), "--data-root", str(copy / "data"), "--out", str(run)]) == 1
    assert first in capsys.readouterr().err
