"""Decoding of JPEG files: Pillow's levels, whichever library they come from."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from builders.tensors import natural
from wmse.datasets import decode
from wmse.datasets.decode import decode_image
from wmse.errors import DataError

SIZES = [(75, 100), (37, 53), (1, 1), (1, 9), (8, 8), (16, 17), (65, 31), (7, 130)]
PHOTOS = [natural(1, *size)[0].permute(1, 2, 0).numpy() for size in SIZES]


def encoded(image: np.ndarray | Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def assert_pillows(content: bytes, fast: bool) -> None:
    """Pillow's levels to the last, by simplejpeg or not."""
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    found = decode_image(content, "x.JPEG")
    assert found.shape == expected.shape
    assert int((found != expected).sum()) == 0
    assert (decode._decode_jpeg(content, "x.JPEG", None) is not None) == fast


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_levels_are_pillows_at_every_quality_and_size(subsampling: str, progressive: bool) -> None:
    options: dict[str, Any] = {"subsampling": subsampling, "progressive": progressive}
    for quality in range(1, 101):
        restart = {"restart_marker_rows": 1} if quality % 3 == 0 else {}
        assert_pillows(encoded(PHOTOS[quality % len(PHOTOS)], quality=quality, **options, **restart), fast=True)


def test_levels_are_pillows_in_shapes_that_few_files_have() -> None:
    photo = PHOTOS[0]
    for quality in (5, 50, 100):
        assert_pillows(encoded(photo[:, :, 0], quality=quality), fast=True)
        for subsampling in ("440", "411"):
            assert_pillows(simplejpeg.encode_jpeg(photo.copy(), quality, colorsubsampling=subsampling), fast=True)
    turned = Image.Exif()
    turned[0x112] = 6  # orientation: rotated by a quarter
    assert_pillows(encoded(photo, exif=turned.tobytes()), fast=True)
    assert_pillows(encoded(photo) + b"\0" * 1000, fast=True)
    assert_pillows(encoded(photo, keep_rgb=True), fast=False)
    assert_pillows(encoded(Image.fromarray(photo).convert("CMYK")), fast=False)
    assert_pillows(encoded(photo, "PNG"), fast=False)  # under the name of a JPEG, as ImageNet has one


def test_a_truncated_file_is_refused_and_a_damaged_one_is_as_pillow_has_it() -> None:
    content = encoded(PHOTOS[0], quality=90)
    for length in (0, 1, 10, 300, len(content) // 2, len(content) - 20, len(content) - 1):
        with pytest.raises(DataError, match=r"x\.JPEG: not a readable image .* restore it from the original archive"):
            decode_image(content[:length], "x.JPEG")
    rng = np.random.default_rng(0)
    for _ in range(60):  # in the data of the pixels, where Pillow often sees nothing wrong
        damaged = bytearray(content)
        damaged[rng.integers(620, len(content))] = rng.integers(256)
        try:
            expected = decode._decode_by_pillow(bytes(damaged), "x.JPEG", None)
        except DataError:
            with pytest.raises(DataError):
                decode_image(bytes(damaged), "x.JPEG")
        else:
            assert np.array_equal(decode_image(bytes(damaged), "x.JPEG"), expected)


def test_where_pillow_has_another_library_it_decodes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_pillow_has_libjpeg_turbo", lambda: False)
    assert_pillows(encoded(PHOTOS[0]), fast=False)
