"""Exported encoders, loaded by the library that each is for, in a process that does not know this package."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from builders.runs import tiny_spec
from builders.tensors import natural, seeded
from wmse.cli import main
from wmse.cli_encoder import FORMATS as OFFERED
from wmse.config import load_project
from wmse.encoder import Encoder, Preprocessing, save_encoder
from wmse.errors import ConfigError, WmseError
from wmse.export import FORMATS, export_encoder, try_export
from wmse.pretrained import Pretrained, open_run

SEEN = {"resize": 20, "size": 16, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
NETWORKS = [
    {"width": 4, "stem": "cifar"},
    {"width": 8, "stem": "small", "arch": "resnet50"},
    {"width": 64, "stem": "imagenet"},
]


def needs(kind: str) -> None:
    """Skip a test of a format, by the name of the library that is missing."""
    for package in {"timm": ["timm"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(kind, []):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra 'export' has it")


def random_run(folder: Path, **network: object) -> Pretrained:
    """An encoder with weights and statistics that all count."""
    spec = tiny_spec(**network, view_size=SEEN["size"], eval_resize=SEEN["resize"])
    torch.manual_seed(3)
    encoder = Encoder(spec.arch, spec.stem, spec.width)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.uniform_(-0.2, 0.2)
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5)
    encoder.preprocessing = Preprocessing.of(spec, SEEN["mean"], SEEN["std"])
    save_encoder(folder / "encoder.safetensors", encoder, spec, "sha256:x")
    return open_run(folder)


CASES = [(kind, network) for kind in FORMATS for network in NETWORKS if kind != "onnx" or network is NETWORKS[0]]


@pytest.mark.parametrize(("kind", "network"), CASES, ids=lambda case: case if isinstance(case, str) else case["stem"])
def test_the_library_gives_the_same_features(kind: str, network: dict[str, object], tmp_path: Path) -> None:
    needs(kind)
    run, said = random_run(tmp_path, **network), []
    files = export_encoder(run, kind, tmp_path / kind, said.append)
    assert sorted(path.name for path in (tmp_path / kind).iterdir()) == sorted(path.name for path in files)
    assert "the features differ by" in said[0]
    if network["width"] != 4:
        return  # the trial has compared the features; a process of its own is for one network enough
    picture = tmp_path / "picture.png"
    image = natural(1, 37, 53)[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(picture)
    code = [sys.executable, "-W", "ignore", "-P", "load.py", str(picture)]
    done = subprocess.run(code, cwd=tmp_path / kind, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.removeprefix(f"{picture} ")))
    with torch.no_grad():
        expected = run.encoder(run.preprocessing(image[None]))[0]
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_timm_makes_its_own_network_of_the_folder_where_it_has_it(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: the extra 'export' has it")
    run = random_run(tmp_path, **NETWORKS[-1])
    export_encoder(run, "timm", tmp_path / "timm", lambda line: None)
    model = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(model(x), run.encoder(x), rtol=1e-5, atol=1e-5)
    seen = timm.data.resolve_data_config({}, model=model)
    assert [list(seen[key]) for key in ("input_size", "mean", "std")] == [
        [3, 16, 16],
        *map(list, (SEEN["mean"], SEEN["std"])),
    ]


def test_no_loader_knows_this_package() -> None:
    for kind in FORMATS:
        source = Path(importlib.import_module("wmse.export").__file__).with_name(f"load_{kind}.py").read_text()
        assert not any(
            node.module == "wmse" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
        )
        assert "import wmse" not in source
    assert tuple(FORMATS) == OFFERED


def test_an_export_with_other_features_is_refused(tmp_path: Path) -> None:
    run = random_run(tmp_path, width=4)
    export_encoder(run, "torchvision", tmp_path / "out", lambda line: None)
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**config, "mean": [0.41, 0.5, 0.6]}))
    with pytest.raises(WmseError, match="gives other features than the encoder; they differ by"):
        try_export(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown format 'tensorflow'"):
        export_encoder(run, "tensorflow", tmp_path / "out")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said, find = random_run(tmp_path, width=4), [], importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("timm", "onnx") else find(name))
    export_encoder(run, "timm", tmp_path / "timm", said.append)
    assert "not tried, because timm is not installed (`pip install timm`)" in said[0]
    with pytest.raises(ConfigError, match=r"ONNX needs onnx: `pip install onnx`"):
        export_encoder(run, "onnx", tmp_path / "onnx")
    assert not list((tmp_path / "onnx").glob("*"))


def test_the_card_says_where_the_encoder_comes_from(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--out", str(tmp_path)]) == 0
    assert f"wrote {tmp_path}/model.safetensors" in capsys.readouterr().out
    card = (tmp_path / "README.md").read_text()
    run = open_run(finished)
    accuracy = run.result["metrics"]["knn5_top1"]
    origin = run.training["provenance"]
    for words in (
        "# W-MSE encoder, CIFAR-10, seed 0",
        f"`{run.spec.run}`",
        run.digest,
        f"| 5-nn, top 1 | {accuracy:.2f} |",
        "on 60 test images after 200 training images",
        "shorter side to 20 pixels",
        "mean [0.4914, 0.4822, 0.4465] subtracted",
        "- Terms: no licence stated; free for research",
        "Digest of the prepared data: `sha256:memory`",
        "| `epochs` | 3 | 1000 |",
        f"torch {origin['versions']['torch']}",
        "3 epochs, 9 steps, 1,152 views",
        '"width": 4',
        "under the MIT licence",
    ):
        assert words in card, words
    alone = tmp_path / "alone/encoder.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((finished / "encoder.safetensors").read_bytes())
    assert main(["export", str(alone)]) == 0
    card = (alone.parent / "export/torchvision/README.md").read_text()
    assert "Not evaluated" in card
    assert "Its training's record was not there" in card


def test_a_run_of_the_configuration_is_found_by_its_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("preset: quick\nresults: out\n")
    command = ["export", "garments/wmse-2/seed0", "--root", str(tmp_path)]
    assert main(command) == 1
    assert "has not been trained: run `wmse pretrain garments/wmse-2/seed0` first" in capsys.readouterr().err
    spec = load_project({"preset": "quick"}).find("garments/wmse-2/seed0")
    shutil.copytree(finished, tmp_path / "out/runs" / spec.run)
    assert main(command) == 0
    assert (tmp_path / "out/runs" / spec.run / "export/torchvision/load.py").exists()
    assert main(["export", "cifar10/wmse-9/seed0", "--root", str(tmp_path)]) == 1
    assert "unknown run 'cifar10/wmse-9/seed0'" in capsys.readouterr().err
