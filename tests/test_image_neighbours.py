"""The contact sheet of nearest neighbours, and the map of all images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.results import PNG
from builders.runs import CPU
from wmse.cli import main
from wmse.errors import DataError
from wmse.image_features import write_folder_features
from wmse.image_neighbours import write_neighbours
from wmse.pretrained import Pretrained, open_run
from wmse.report.pictures import Tile, draw_map, draw_sheet, shorten_left


def test_the_neighbours_are_the_nearest_others(finished: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "copy.png").write_bytes((photos / "cats/00.png").read_bytes())
    out = tmp_path / "out"
    command = ["neighbours", str(finished), str(photos), "--out", str(out), "--threads", "1", "--samples", "25"]
    assert main([*command, "--neighbours", "3"]) == 0
    names = ["features.npz", "map.png", "map.svg", "neighbours.csv", "neighbours.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    content = np.load(out / "features.npz")
    files, x = content["files"].tolist(), content["features"].astype(np.float64)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    with open(out / "neighbours.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 * 3
    for i, name in enumerate(files):
        mine = [row for row in rows if row["sample"] == name]
        assert [row["neighbour"] for row in mine] == [files[j] for j in distance[i].argsort(kind="stable")[:3]]
        np.testing.assert_allclose([float(row["distance"]) for row in mine], np.sort(distance[i])[:3], rtol=1e-4)
    twins = [row for row in rows if {row["sample"], row["neighbour"]} == {"copy.png", "cats/00.png"}]
    assert [(row["rank"], row["distance"]) for row in twins] == [("1", "0"), ("1", "0")]
    assert "birds" in (out / "map.svg").read_text()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = tmp_path / "again"
    given = ["--out", str(again), "--features", str(out / "features.npz")]
    assert main([*command, "--neighbours", "3", *given]) == 0
    del before["features.npz"]
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before


def test_features_of_another_encoder_or_of_one_image_are_refused(finished: Path, photos: Path, tmp_path: Path) -> None:
    run = open_run(finished)
    features = tmp_path / "features.npz"
    write_folder_features(run, photos, features, CPU)
    other = Pretrained(**{**vars(run), "digest": "sha256:other"})
    with pytest.raises(DataError, match="features of another encoder"):
        write_neighbours(other, photos, tmp_path, CPU, features=features)
    features.write_text("no archive")
    with pytest.raises(DataError, match="not a file of `wmse features`"):
        write_neighbours(run, photos, tmp_path, CPU, features=features)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes((photos / "cats/00.png").read_bytes())
    with pytest.raises(DataError, match="one image has no neighbours"):
        write_neighbours(run, tmp_path / "one", tmp_path / "out", CPU)


def test_the_sheet_shows_its_images(tmp_path: Path) -> None:
    colours = [[(200, 30, 30), (30, 200, 30)], [(30, 30, 200)]]
    tiles = [[Tile(np.full((96, 96, 3), c, np.uint8), "a/b.png\n0.5") for c in row] for row in colours]
    content = draw_sheet(tiles, "title")
    assert content == draw_sheet(tiles, "title")
    assert content.startswith(PNG)
    (tmp_path / "sheet.png").write_bytes(content)
    shown = np.array(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    for colour in (colour for row in colours for colour in row):
        assert (shown == colour).all(axis=1).sum() > 5000, colour


def test_the_map_names_its_groups_and_hides_none() -> None:
    points = np.random.default_rng(0).normal(size=(300, 2))
    groups = [f"class {i % 20:02d}" if i % 3 else "" for i in range(300)]
    svg = draw_map(points, groups, (0.5, 0.25), "title")["svg"].decode()
    assert svg == draw_map(points, groups, (0.5, 0.25), "title")["svg"].decode()
    shown = [name for name in sorted(set(groups)) if name and f"<!-- {name} -->" in svg]
    assert 5 <= len(shown) < 20
    for words in ("others", "first principal axis (50 % of the variance)", "second principal axis (25 %)"):
        assert f"<!-- {words} -->" in svg
    assert "<!-- images -->" not in draw_map(points, [""] * 300, (0.5, 0.25), "t")["svg"].decode()


def test_names_are_shortened_where_they_are_alike() -> None:
    assert shorten_left("short.png\n1") == "short.png\n1"
    assert shorten_left("a/very/long/folder/name/image_0001.png") == "…name/image_0001.png"
    assert shorten_left("tab\t") == "tab\\t"
