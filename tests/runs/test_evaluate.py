"""Evaluation of a run: what the result says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18

from builders.runs import make_job, tiny_spec
from wmse.datasets import ArrayDataset
from wmse.encoder import Encoder, restore_encoder, save_encoder
from wmse.errors import CheckpointError
from wmse.runs.evaluate import evaluate
from wmse.training import pretrain


def test_a_trained_run_gets_a_result_with_provenance(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4")
    pretrain(make_job(spec, data, tmp_path))
    evaluate(make_job(spec, data, tmp_path, preset="test"))
    result = json.loads((tmp_path / "result.json").read_text())
    history = (tmp_path / "history.csv").read_text().splitlines()[-1].split(",")
    assert result["metrics"]["knn5_top1"] == pytest.approx(float(history[-2]))
    assert 10 < result["metrics"]["linear_top1"] <= result["metrics"]["linear_top5"] <= 100
    assert (result["spec_hash"], result["data"]["digest"]) == (spec.hash, data.digest)
    assert result["evaluation"]["features"] == 32
    assert result["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["paper_differences"]["width"] == {"run": 4, "paper": 64}
    labels = [int(line.split()[0]) for line in result["map"]["points"].split("\n")]
    assert labels == data["test"].labels.tolist()
    assert 0 < float(result["map"]["shares"].split()[1]) < float(result["map"]["shares"].split()[0]) < 1


def test_the_probes_are_repeatable_whatever_the_global_generator(data: ArrayDataset, tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(evaluate(make_job(tiny_spec("random"), data, tmp_path))["metrics"])
    assert results[0] == results[1]


def test_another_runs_encoder_or_data_is_refused(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec()
    with pytest.raises(CheckpointError, match=r"pretrain\.json: is missing: run `wmse pretrain "):
        evaluate(make_job(spec, data, tmp_path))
    pretrain(make_job(spec, data, tmp_path))
    with pytest.raises(CheckpointError, match=r"pretrain\.json: belongs to the run .*, not to cifar10/wmse-2/"):
        evaluate(make_job(tiny_spec(lr=0.5), data, tmp_path))
    save_encoder(tmp_path / "encoder.safetensors", Encoder(width=4), tiny_spec(lr=0.5), data.digest)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: the encoder of cifar10/wmse-2/seed0-"):
        restore_encoder(tmp_path / "encoder.safetensors", Encoder(width=4), spec)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: is not what pretrain\.json vouches for"):
        evaluate(make_job(spec, data, tmp_path))
    (tmp_path / "encoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: not a readable encoder"):
        restore_encoder(tmp_path / "encoder.safetensors", Encoder(width=4), spec)
    edited = tmp_path / "pretrain.json"
    edited.write_text(edited.read_text().replace('"resumed": 0', '"resumed": 1'))
    with pytest.raises(CheckpointError, match=r"pretrain\.json: was changed after it was written"):
        evaluate(make_job(spec, data, tmp_path))
    edited.write_text(edited.read_text().replace('"resumed": 1', '"resumed": 0'))
    data.digest = "sha256:other"
    with pytest.raises(CheckpointError, match="computed on data with digest sha256:memory"):
        evaluate(make_job(spec, data, tmp_path))


def test_the_file_of_a_full_width_encoder_loads_into_torchvisions_resnet(tmp_path: Path) -> None:
    encoder = Encoder("resnet18", "cifar", 64).eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder, tiny_spec(), "sha256:x")
    model = resnet18()
    model.conv1, model.maxpool, model.fc = (
        torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        torch.nn.Identity(),
        torch.nn.Identity(),
    )
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), encoder(x))
