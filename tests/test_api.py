"""The names for notebooks: where they come from, that they are typed, and training from Python."""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path

import pytest
import torch

import wmse
from builders.runs import tiny_spec
from builders.workflow import TINY
from wmse.api import pretrain
from wmse.config import make_spec
from wmse.datasets import ArrayDataset
from wmse.errors import ConfigError, DataError
from wmse.image_features import folder_features
from wmse.losses import WMSELoss, wmse_loss
from wmse.pretrained import load_encoder
from wmse.probes import knn_accuracy, nearest

WIDER = {"epochs": 2, "width": 8, "view_size": 16, "eval_resize": 16}


def test_the_names_are_what_the_modules_have() -> None:
    found = {name: getattr(wmse, name) for name in wmse.__all__}
    expected = {
        "WMSELoss": WMSELoss,
        "__version__": wmse.__version__,
        "folder_features": folder_features,
        "knn_accuracy": knn_accuracy,
        "load_encoder": load_encoder,
        "losses": sys.modules["wmse.losses"],
        "nearest": nearest,
        "pretrain": pretrain,
        "whitening": sys.modules["wmse.whitening"],
    }
    assert found == expected
    assert dir(wmse) == wmse.__all__ == sorted(wmse.__all__)
    assert wmse.losses.wmse_loss is wmse.whitening.wmse_loss is wmse_loss
    with pytest.raises(AttributeError, match="module 'wmse' has no attribute 'train'"):
        _ = wmse.train


def test_every_one_is_typed_and_documented() -> None:
    for name in wmse.__all__:
        value = getattr(wmse, name)
        if not callable(value):
            continue
        assert value.__doc__, name
        function = value.__init__ if inspect.isclass(value) else value
        parameters = set(inspect.signature(function).parameters) - {"self"}
        assert typing.get_type_hints(function).keys() == parameters | {"return"}, name


def test_a_cell_is_trained_and_continued_and_read_again(data: ArrayDataset, tmp_path: Path) -> None:
    said: list[str] = []
    settings = {"parameters": {**TINY, **WIDER}, "seed": 3, "device": "cpu", "threads": 1, "log": said.append}
    first = pretrain("cifar10/wmse-2", data, tmp_path / "run", **settings)
    assert any(line.startswith("epoch 2/2") for line in said)
    assert not first.training
    said.clear()
    again = pretrain("cifar10/wmse-2", data, str(tmp_path / "run"), **settings)
    assert not any(line.startswith("epoch") for line in said)
    spec = make_spec("cifar10/wmse-2", 3, [TINY, WIDER])
    third = pretrain(spec, data, tmp_path / "other", device="cpu", threads=1, log=said.append)
    for other in (again, third):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_trained_is_said(data: ArrayDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the baseline 'pixels' has nothing to train"):
        pretrain("cifar10/pixels", data, tmp_path)
    with pytest.raises(ConfigError, match="a specification has its own"):
        pretrain(tiny_spec(), data, tmp_path, seed=1)
    with pytest.raises(DataError, match="run `wmse prepare cifar10`"):
        pretrain("cifar10/wmse-2", tmp_path / "none", tmp_path)
