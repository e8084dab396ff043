"""What an encoder finds alike in a folder of images: a contact sheet of nearest neighbours, and a map of all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from wmse.datasets.decode import decode_any
from wmse.errors import DataError
from wmse.files import atomic_path
from wmse.image_features import write_folder_features
from wmse.images import decode
from wmse.pretrained import Pretrained
from wmse.probes import nearest, principal_plane
from wmse.report.pictures import Tile, draw_map, draw_sheet
from wmse.runtime import Runtime
from wmse.streams import stream
from wmse.views import resize_center_crop_one

SIDE = 112  # Pixels of an image on the sheet.
MOST_POINTS = 5000  # Images on the map.


def write_neighbours(
    run: Pretrained,
    folder: Path,
    out: Path,
    runtime: Runtime,
    *,
    samples: int = 8,
    neighbours: int = 8,
    seed: int = 0,
    features: Path | None = None,
    skip_broken: bool = False,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """Write neighbours.png, neighbours.csv, map.png and map.svg for the images below `folder`; returns the files.

    The sheet has a row for each of some images, drawn by `seed`, with its nearest others by the Euclidean distance of
    features. The map shows the plane of the two principal axes; a folder directly below `folder` is a group, with a
    colour.

    Args:
        features: an .npz file of `write_folder_features` of this run and folder; without it, one is made in `out`.

    Raises:
        DataError: fewer than two images, or features of another encoder; and what `write_folder_features` raises.
    """
    if features is None:
        features = out / "features.npz"
        write_folder_features(run, folder, features, runtime, skip_broken=skip_broken, log=log)
    names, x = _read_features(features, run)
    rows = torch.randperm(len(x), generator=stream(seed, "samples"))[:samples].sort().values
    # A row is its own nearest neighbour, or another one with the same features is.
    found = nearest(x, x[rows], min(neighbours + 1, len(x)))
    others = [
        [i for i in line if i != row][:neighbours] for row, line in zip(rows.tolist(), found.tolist(), strict=True)
    ]
    table = [
        (names[row], rank, names[i], float((x[row].double() - x[i].double()).norm()))
        for row, line in zip(rows.tolist(), others, strict=True)
        for rank, i in enumerate(line, 1)
    ]
    written = {
        "neighbours.png": _sheet(run, folder, names, rows.tolist(), table),
        "neighbours.csv": _csv(table),
        **_map(run, names, x),
    }
    for name, content in written.items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(content)
    return [out / name for name in written]


def _read_features(file: Path, run: Pretrained) -> tuple[list[str], torch.Tensor]:
    again = f"run `wmse features {run.file} FOLDER --out {file.with_suffix('.npz')}`, or leave out --features"
    try:
        with np.load(file, allow_pickle=False) as content:
            names, x, encoder = content["files"].tolist(), content["features"], str(content["encoder"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: not a file of `wmse features` ({error}): {again}") from None
    if encoder != run.digest:
        raise DataError(f"{file}: holds features of another encoder than {run.file}: {again}")
    if len(names) < 2:
        raise DataError(f"{file}: one image has no neighbours: name a folder with more")
    return names, torch.from_numpy(x)


def _sheet(
    run: Pretrained, folder: Path, names: list[str], rows: list[int], table: list[tuple[str, int, str, float]]
) -> bytes:
    def tile(name: str, text: str) -> Tile:
        pixels = resize_center_crop_one(decode(folder / name, decode_any), SIDE, SIDE)[0]
        return Tile(pixels.byte().permute(1, 2, 0).numpy(), f"{name}\n{text}")

    sheet = [
        [tile(names[row], "sample"), *(tile(name, f"{d:.3g}") for sample, _, name, d in table if sample == names[row])]
        for row in rows
    ]
    return draw_sheet(sheet, f"nearest of {len(names):,} images, by features of {run.spec.run}")


def _csv(table: list[tuple[str, int, str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "rank", "neighbour", "distance"])
    writer.writerows((sample, rank, name, f"{distance:.6g}") for sample, rank, name, distance in table)
    return text.getvalue().encode(errors="backslashreplace")


def _map(run: Pretrained, names: list[str], x: torch.Tensor) -> dict[str, bytes]:
    points, shares = principal_plane(x)
    shown = torch.randperm(len(x), generator=stream(0, "map"))[:MOST_POINTS].sort().values
    groups = [names[i].partition("/")[0] if "/" in names[i] else "" for i in shown.tolist()]
    title = f"{len(shown):,} of {len(x):,} images, features of {run.spec.run}"
    return {
        f"map.{kind}": content
        for kind, content in draw_map(points[shown].numpy(), groups, shares.tolist(), title).items()
    }
