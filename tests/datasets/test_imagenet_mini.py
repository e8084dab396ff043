"""ImageNet in miniature: a folder of JPEGs that the Fashion-MNIST sample is written to."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from builders.raw import put
from wmse.datasets import prepare
from wmse.errors import DataError


@pytest.mark.parametrize("name", ["imagenet100_mini", "imagenet_mini"])
def test_imagenet_in_miniature_is_a_folder_of_jpegs_in_imagenets_layout(name, tmp_path):
    data = prepare(name, tmp_path, log=lambda line: None)
    assert {split: len(data[split]) for split in data} == {"pretrain": 1000, "train": 1000, "test": 200}
    first, last = data["train"].paths[0], data["test"].paths[-1]
    assert first.relative_to(tmp_path / name).as_posix() == "raw/train/n00000000/n00000000_0.JPEG"
    assert last.relative_to(tmp_path / name).as_posix() == "raw/val/n00000009/n00000009_9.JPEG"
    sizes = set()
    for path, label in zip(data["train"].paths, data["train"].labels, strict=True):
        assert path.parent.name == f"n{label:08d}"
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert len(sizes) > 20
    assert min(min(size) for size in sizes) >= 36
    assert max(max(size) for size in sizes) <= 64
    again = prepare(name, tmp_path / "again", log=lambda line: None)
    assert again.digest == data.digest


def test_the_miniatures_images_are_those_of_the_sample(tmp_path):
    data, sample = prepare("imagenet_mini", tmp_path, log=lambda line: None), prepare("fashion_mnist", tmp_path)
    images = sample["test"].images[sample["test"].labels == 3]
    for i in (0, 7, 19):
        path = tmp_path / f"imagenet_mini/raw/val/n00000003/n00000003_{i}.JPEG"
        small = np.array(Image.open(path).convert("L").resize((28, 28), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(small - images[i, 0, 2:-2, 2:-2]).mean() < 6
    assert len(data["test"]) == 200


def test_an_interrupted_miniature_is_written_again_and_a_damaged_one_refused(tmp_path):
    put(tmp_path / "imagenet_mini/raw/.train.partial/n00000000/half.JPEG", b"x")
    put(tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG", b"x")  # no val folder: not complete
    data = prepare("imagenet_mini", tmp_path, log=lambda line: None)
    assert not (tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG").exists()
    data["train"].paths[5].unlink()
    (tmp_path / "imagenet_mini/prepared/manifest.json").unlink()
    with pytest.raises(DataError, match="imagenet_mini train has 999 images, expected 1,000"):
        prepare("imagenet_mini", tmp_path, log=lambda line: None)
