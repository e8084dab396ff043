"""Whatever bytes the files of a run hold: they are used, or refused by one clear message, and nothing is executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import wmse.features
from builders.hostile import Canary, as_json, changed, mutated, outcome
from builders.raw import put
from builders.results import make_run
from builders.runs import make_job, tiny_spec
from wmse.datasets import ArrayDataset
from wmse.encoder import restore_encoder, save_encoder
from wmse.methods import build_encoder
from wmse.pretrained import open_run
from wmse.report import write_claims, write_plots, write_tables
from wmse.runs.evaluate import evaluate
from wmse.runs.verify import verify
from wmse.runtime import Runtime
from wmse.training import pretrain

# What is made here is meant to be strange; a warning about it is no finding.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in multiply")


def test_fuzzed_encoders(tmp_path: Path, fuzz: Any) -> None:
    spec = tiny_spec()
    path, encoder = tmp_path / "encoder.safetensors", build_encoder(spec, 0)
    save_encoder(path, encoder, spec, "sha256:x")
    good = path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    head = json.loads(good[8:length])

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: restore_encoder(path, encoder, spec), path.name)
        outcome(lambda: open_run(path), path.name)

    def assembled(head: Any) -> bytes:
        text = as_json(head).encode()
        return len(text).to_bytes(8, "little") + text + good[length:]

    deep = {**head, "__metadata__": {"wmse": "[" * 100_000}}
    examples = [b"", assembled({}), assembled(deep), assembled({**head, "__metadata__": {"wmse": "[1]"}})]
    fuzz(check, mutated(good[:length]).map(lambda start: start + good[length:]), few=60, many=500)
    fuzz(check, changed(head).map(assembled), few=60, many=500, examples=examples)


def test_fuzzed_records_of_a_training(
    tmp_path: Path, data: ArrayDataset, fuzz: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, runtime = tiny_spec(epochs=1, lr_drops=[]), Runtime(torch.device("cpu"))
    pretrain(make_job(spec, data, tmp_path, runtime))
    path = tmp_path / "pretrain.json"
    text = path.read_bytes()
    features = (torch.zeros(200, 4), torch.zeros(60, 4))
    monkeypatch.setattr(wmse.features, "run_features", lambda *arguments: features)
    monkeypatch.setattr(
        wmse.features, "probe_features", lambda *arguments: {"linear_top1": 1.0, "linear_top5": 2.0, "knn5_top1": 3.0}
    )

    def check(content: dict[str, Any] | bytes) -> None:
        path.write_bytes(content if isinstance(content, bytes) else as_json(content, seal=True).encode())
        outcome(lambda: evaluate(make_job(spec, data, tmp_path, runtime)), path.name)

    good = json.loads(text)
    fuzz(check, changed(good), few=40, many=300, examples=[{}, {**good, "spec_hash": 5}, [], 5])
    fuzz(check, mutated(text), few=30, many=200, examples=[b"[" * 100_000, b""])


def test_fuzzed_checkpoints(tmp_path: Path, data: ArrayDataset, fuzz: Any) -> None:
    """Through the whole training, which may go on from an older one; whether it then computes the same is not asked."""
    spec, runtime = tiny_spec(epochs=1, lr_drops=[]), Runtime(torch.device("cpu"))
    pretrain(make_job(spec, data, tmp_path / "good", runtime))
    good = {path.relative_to(tmp_path / "good"): path.read_bytes() for path in (tmp_path / "good").rglob("*.pt")}
    assert good

    def check(content: bytes) -> None:
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)  # a finished run would stay as it is
        for name in good:
            put(out / name, content)
        outcome(lambda: pretrain(make_job(spec, data, out, runtime)), "")

    fuzz(check, mutated(*good.values()), few=15, many=150, examples=[b"", pickle.dumps(Canary(tmp_path / "canary"))])
    assert not (tmp_path / "canary").exists()


def test_fuzzed_results(tmp_path: Path, fuzz: Any) -> None:
    trained = make_run(tmp_path / "runs")
    baseline = make_run(tmp_path / "runs", method="random")
    for directory in (trained, baseline):
        path = directory / "result.json"
        text = path.read_bytes()
        good = json.loads(text)

        def check(content: Any, path: Path = path) -> None:
            path.write_bytes(content if isinstance(content, bytes) else as_json(content, seal=True).encode())
            runs, out = [trained, baseline], tmp_path / "out"
            outcome(lambda: (write_tables(runs, out), write_claims(runs, out)), str(path.parent))
            outcome(lambda: verify(runs, tmp_path / "data", out))

        examples = [
            {**good, "preset": "\ud800"},
            {**good, "provenance": {**good["provenance"], "hardware": {"gpu": ["x"]}}},
            {**good, "evaluation": {"wall_seconds": "long"}},
            {**good, "metrics": {**good["metrics"], "linear_top1": 10**400}},
            {**good, "files": {"9" * 1000: "sha256:0", "../../elsewhere": "sha256:0"}},
        ]
        fuzz(check, changed(good), few=60, many=1500, examples=examples)
        fuzz(check, mutated(text), few=30, many=300, examples=[b"[" * 100_000, b'{"a": 1e999}'])
        path.write_bytes(text)


def test_fuzzed_histories(tmp_path: Path, fuzz: Any) -> None:
    directory = make_run(tmp_path)
    path = directory / "history.csv"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: write_claims([directory], tmp_path / "out"), path.name)
        outcome(lambda: write_plots([directory], tmp_path / "out"), path.name)

    examples = [b"", good.replace(b"0.1", b"1e308"), good.replace(b"60.0", b"nan"), good.replace(b"60.0", b"-1e300")]
    fuzz(check, mutated(good), few=1, many=40, examples=examples)
