"""Garments: cut-outs of the Fashion-MNIST sample, the same on every processor."""

from __future__ import annotations

import numpy as np

from builders.raw import quiet
from wmse.datasets import SOURCES, prepare
from wmse.datasets.garments import CELL, SIDE, SIZES, Draw, bilinear, cut_outs, noise, place

# Of what is prepared: results of this benchmark are comparable as long as it stays.
DIGEST = "sha256:0b1d511f51492e5fe3cc991c3a70a22a61b712b6f5303d0a6ef01178d6a26b32"


def test_the_prepared_images_are_the_same_bytes_everywhere(tmp_path):
    data, source = prepare("garments", tmp_path, download=False, log=quiet), SOURCES["garments"]
    assert data.digest == DIGEST
    assert data["train"].images.shape == (10_000, 3, SIDE, SIDE)
    assert data["test"].images.shape == (2_000, 3, SIDE, SIDE)
    assert np.bincount(data["train"].labels).tolist() == [1000] * 10
    assert np.bincount(data["test"].labels).tolist() == [200] * 10
    images = data["train"].images[:]
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)) / 255, source.mean, atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)) / 255, source.std, atol=1e-4)


def test_draws_are_whole_numbers_of_a_range_with_both_ends():
    draw = Draw(5)
    found = draw(-2, 3, 50, 20)
    assert found.shape == (50, 20)
    assert sorted(set(found.ravel().tolist())) == [-2, -1, 0, 1, 2, 3]
    assert (draw(-2, 3, 50, 20) != found).any()
    assert (Draw(5)(-2, 3, 50, 20) == found).all()


def test_bilinear_values_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3, 5, 6))
    y, x = rng.integers(0, 4 * 8, (3, 7)), rng.integers(0, 5 * 8, (3, 9))
    found = bilinear(values, np.arange(3)[:, None, None], y[:, :, None], x[:, None, :], 8)
    for image, row, column in np.ndindex(3, 7, 9):
        (i, v), (j, u) = divmod(y[image, row] / 8, 1), divmod(x[image, column] / 8, 1)
        (a, b), (c, d) = values[image, int(i) : int(i) + 2, int(j) : int(j) + 2]
        exact = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
        assert found[image, row, column] == np.floor(exact)  # all of these are exact in float64


def test_a_garment_of_its_own_size_is_the_original_at_some_place(monkeypatch):
    monkeypatch.setattr("wmse.datasets.garments.SIZES", (28, 28))
    originals = np.random.default_rng(1).integers(0, 256, (20, 28, 28), np.uint8)
    places = set()
    for original, placed in zip(originals, place(originals, Draw(0)), strict=True):
        found = [
            (top, left)
            for top, left in np.ndindex(SIDE - 27, SIDE - 27)
            if (placed[top : top + 28, left : left + 28] == original).all()
        ]
        assert len(found) == 1
        assert placed.sum() == original.sum()  # black around it
        places.update(found)
    assert len(places) > 10


def test_garments_differ_in_place_size_side_and_colour():
    white = np.full((500, 28, 28), 255, np.uint8)
    seen = place(white, Draw(0)) > 127
    heights, widths = seen.any(2).sum(1), seen.any(1).sum(1)
    assert (heights == widths).all()
    assert set(heights.tolist()) == set(range(SIZES[0], SIZES[1] + 1))
    assert len(set(zip(seen.any(2).argmax(1).tolist(), seen.any(1).argmax(1).tolist(), strict=True))) > 100
    left = np.zeros((500, 28, 28), np.uint8)
    left[:, :, :10] = 255
    images = cut_outs(left, Draw(0)).astype(int).mean(axis=1)
    mirrored = (images[:, :, 16:].mean(axis=(1, 2)) > images[:, :, :16].mean(axis=(1, 2))).mean()
    assert 0.3 < mirrored < 0.7


def test_the_noise_is_of_one_kind_and_its_squares_are_independent():
    images = noise(Draw(3), 400)
    assert images.shape == (400, SIDE, SIDE, 3)
    assert images.mean(axis=(1, 2)).std() < 5  # no image is brighter, or has another tint
    assert images.std() > 30

    def correlation(pixels: int) -> float:
        return np.corrcoef(images[:, :, :-pixels].ravel(), images[:, :, pixels:].ravel())[0, 1]

    assert correlation(1) > 0.4
    assert abs(correlation(CELL)) < 0.02
