"""Features of a network, and pixels in their place."""

from __future__ import annotations

from pathlib import Path

import torch

from builders.runs import CPU, make_job, tiny_spec
from wmse.datasets import SOURCES, ArrayDataset
from wmse.encoder import Encoder
from wmse.features import extract, raw_pixels
from wmse.images import open_images
from wmse.probes import knn_accuracy
from wmse.runs.evaluate import evaluate


def test_features_are_taken_in_eval_mode_and_the_mode_is_restored(data: ArrayDataset) -> None:
    spec = tiny_spec()
    images = open_images(data["test"], SOURCES["cifar10"], spec, CPU.device)
    encoder = Encoder(stem="cifar", width=4).train()
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    features = extract(encoder, images, CPU)
    assert encoder.training
    assert all(torch.equal(value, buffers[name]) for name, value in encoder.named_buffers())
    alone = encoder.eval()(next(images.plain())[7:8])
    torch.testing.assert_close(features[7:8], alone.detach(), rtol=1e-4, atol=1e-5)  # no statistics of the batch


def test_raw_pixels_are_the_normalised_images(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("pixels", view_size=32, eval_resize=0)
    source = SOURCES["cifar10"]
    features = raw_pixels(open_images(data["test"], source, spec, CPU.device))
    expected = torch.from_numpy(data["test"].images).float() / 255
    expected = (expected - torch.tensor(source.mean).view(3, 1, 1)) / torch.tensor(source.std).view(3, 1, 1)
    torch.testing.assert_close(features, expected.flatten(1))
    result = evaluate(make_job(spec, data, tmp_path))
    labels = [torch.from_numpy(data[name].labels) for name in ("train", "test")]
    train = raw_pixels(open_images(data["train"], source, spec, CPU.device))
    assert result["metrics"]["knn5_top1"] == knn_accuracy(train, labels[0], features, labels[1])
    assert result["pretrain"] is None
