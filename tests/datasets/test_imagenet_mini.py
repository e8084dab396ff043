"""ImageNet in miniature: a folder of JPEGs that garments are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.raw import put
from wmse.datasets import fashion_mnist, prepare
from wmse.datasets.archives import FolderFiles
from wmse.datasets.garments import SEEDS, Draw, cut_outs
from wmse.errors import DataError


@pytest.mark.parametrize("name", ["imagenet100_mini", "imagenet_mini"])
def test_imagenet_in_miniature_is_a_folder_of_jpegs_in_imagenets_layout(name, tmp_path):
    data = prepare(name, tmp_path, log=lambda line: None)
    assert {split: len(data[split]) for split in data} == {"pretrain": 4000, "train": 4000, "test": 500}
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


def test_the_miniatures_images_are_garments(tmp_path):
    data = prepare("imagenet_mini", tmp_path, log=lambda line: None)
    files = FolderFiles(Path(fashion_mnist.__file__).with_name("fashion_mnist_sample"), "idx")
    (_, originals, labels) = list(fashion_mnist.read_originals(files))[1]
    draw = Draw(SEEDS["test"])
    images = [cut_outs(originals[labels == label][:50], draw) for label in range(10)]
    for i in (0, 7, 49):
        path = tmp_path / f"imagenet_mini/raw/val/n00000003/n00000003_{i}.JPEG"
        small = np.array(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
        assert np.corrcoef(small.ravel(), images[3][i].transpose(1, 2, 0).ravel())[0, 1] > 0.9  # resized twice
    assert len(data["test"]) == 500


def test_an_interrupted_miniature_is_written_again_and_a_damaged_one_refused(tmp_path):
    put(tmp_path / "imagenet_mini/raw/.train.partial/n00000000/half.JPEG", b"x")
    put(tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG", b"x")  # no val folder: not complete
    data = prepare("imagenet_mini", tmp_path, log=lambda line: None)
    assert not (tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG").exists()
    data["train"].paths[5].unlink()
    (tmp_path / "imagenet_mini/prepared/manifest.json").unlink()
    with pytest.raises(DataError, match="imagenet_mini train has 3,999 images, expected 4,000"):
        prepare("imagenet_mini", tmp_path, log=lambda line: None)
