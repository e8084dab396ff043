"""Trained encoders read from their runs: with the records, from the file alone, and not if anything is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.runs import CPU, tiny_spec
from wmse.datasets import SOURCES, ArrayDataset
from wmse.encoder import Encoder, Preprocessing, save_encoder
from wmse.errors import CheckpointError
from wmse.features import extract
from wmse.files import digests, write_sealed_json
from wmse.images import open_images
from wmse.pretrained import load_encoder, open_run
from wmse.runs.folder import ENCODER, HISTORY

SPEC = tiny_spec(view_size=16, eval_resize=20)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def test_an_encoder_gives_the_features_of_its_evaluation(finished: Path, data: ArrayDataset) -> None:
    encoder = load_encoder(str(finished))
    assert not encoder.training
    assert encoder.preprocessing == Preprocessing(20, 16, SOURCES["cifar10"].mean, SOURCES["cifar10"].std)
    expected = extract(encoder, open_images(data["test"], SOURCES["cifar10"], SPEC, CPU.device), CPU)
    with torch.no_grad():
        found = encoder(encoder.preprocessing(torch.from_numpy(data["test"].images)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.std() > 0


def test_a_run_comes_with_its_records_and_the_file_alone_without(finished: Path, tmp_path: Path) -> None:
    run = open_run(finished)
    assert (run.spec, run.training["run"], run.result["metrics"].keys()) == (
        SPEC,
        SPEC.run,
        {"linear_top1", "linear_top5", "knn5_top1"},
    )
    alone = open_run(shutil.copyfile(finished / ENCODER, tmp_path / "mine.safetensors"))
    assert (alone.spec, alone.preprocessing, alone.digest) == (run.spec, run.preprocessing, run.digest)
    assert (alone.training, alone.result) == ({}, {})
    weights = run.encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in alone.encoder.state_dict().items())


def older(run: Path, **more: str) -> None:
    """Make the encoder's file one of the version that wrote the run, its hash and the data's digest into it alone."""
    about = {"run": SPEC.run, "hash": SPEC.hash, "data": "sha256:memory"}
    save_file(load_file(run / ENCODER), run / ENCODER, {"wmse": json.dumps({**about, **more})})
    content = json.loads((run / "pretrain.json").read_text())
    write_sealed_json(run / "pretrain.json", {**content, "files": digests(run, ENCODER, HISTORY)})


def test_a_run_of_an_earlier_version_is_described_by_its_record(run: Path, tmp_path: Path) -> None:
    before = open_run(run)
    older(run)
    after = open_run(run)
    assert (after.spec, after.preprocessing) == (before.spec, before.preprocessing)
    with pytest.raises(
        CheckpointError, match=r"alone\.safetensors: does not say which network it is of: give the folder"
    ):
        open_run(shutil.copyfile(run / ENCODER, tmp_path / "alone.safetensors"))


def edit_record(name: str, key: str, value: object) -> object:
    def edit(run: Path) -> None:
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**content, key: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / ENCODER).unlink(), "there is no encoder: give the folder of a run"),
        (lambda run: (run / ENCODER).write_bytes(b"x" * 40), "not a readable encoder"),
        (lambda run: save_encoder(run / ENCODER, Encoder(width=4), SPEC, "x"), "is not what pretrain.json vouches for"),
        (lambda run: older(run, hash="0" * 64), f"the encoder of {SPEC.run}, not of {SPEC.run}"),
        (edit_record("pretrain.json", "preset", "other"), "pretrain.json: was changed after it was written"),
        (edit_record("result.json", "seed", 9), "result.json: was changed after it was written"),
        (lambda run: older(run, preprocessing={"resize": "x"}), "does not say how its images were normalised"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(run: Path, damage: object, message: str) -> None:
    damage(run)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_run(run)
    assert str(run) in str(caught.value)


def test_weights_of_another_width_are_refused(run: Path) -> None:
    (run / "pretrain.json").unlink()
    save_encoder(run / ENCODER, Encoder(width=8), SPEC, "sha256:x")
    with pytest.raises(CheckpointError, match="damaged"):
        open_run(run)
