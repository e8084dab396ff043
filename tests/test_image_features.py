"""Features of a folder of images: those of an evaluation, in both formats, resumed, and with broken files named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wmse
from builders.runs import CPU
from wmse.cli import main
from wmse.errors import ConfigError, DataError, TrainingError
from wmse.image_features import BATCH, BrokenImages, find_images, folder_features, write_folder_features
from wmse.pretrained import Pretrained, open_run


@pytest.fixture
def run(finished: Path) -> Pretrained:
    return open_run(finished)


def expected(run: Pretrained, folder: Path, names: list[str]) -> np.ndarray:
    """One image at a time."""
    rows = []
    for name in names:
        with Image.open(folder / name) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            rows.append(run.encoder(run.preprocessing(pixels))[0].numpy())
    return np.stack(rows)


def test_the_images_of_a_folder_are_found_in_order(photos: Path) -> None:
    names = find_images(photos)
    assert len(names) == 24
    assert names == sorted(names)
    assert names[0] == "birds/small/02.png"
    (photos / "empty").mkdir()
    for folder, message in ((photos / "empty", "holds no image"), (photos / "none", "no such folder")):
        with pytest.raises(DataError, match=message):
            find_images(folder)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_the_features_are_those_of_each_image_alone(
    run: Pretrained, photos: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra 'export' has it")
    out = tmp_path / f"new/features{suffix}"
    assert main(["features", str(run.file.parent), str(photos), "--out", str(out), "--threads", "1"]) == 0
    assert f"wrote {out}: the features of 24 images" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    if suffix == ".npz":
        content = np.load(out)
        names, features, about = content["files"].tolist(), content["features"], content
    else:
        from pyarrow import parquet

        table = parquet.read_table(out)
        names, features = table["file"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)
        about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert names == find_images(photos)
    assert (features.dtype, str(about["run"]), str(about["encoder"])) == (np.float32, run.spec.run, run.digest)
    np.testing.assert_allclose(features, expected(run, photos, names), rtol=1e-5, atol=1e-5)
    in_memory = wmse.folder_features(run.encoder, photos)
    assert in_memory[0] == names
    np.testing.assert_array_equal(in_memory[1], features)


class Counted(torch.nn.Module):
    """An encoder that counts its images, and fails after some of them."""

    def __init__(self, run: Pretrained, fail_after: int = 10**9) -> None:
        super().__init__()
        self.encoder, self.preprocessing, self.features = run.encoder, run.preprocessing, run.encoder.features
        self.seen, self.fail_after = 0, fail_after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return self.encoder(x)


def counted(run: Pretrained, **settings: int) -> tuple[Pretrained, Counted]:
    encoder = Counted(run, **settings)
    return Pretrained(**{**vars(run), "encoder": encoder}), encoder


def test_an_interrupted_call_goes_on_and_gives_the_same(
    run: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmse.image_features.BATCH", 5)
    assert BATCH > 24
    straight, out, part = tmp_path / "straight.npz", tmp_path / "out.npz", tmp_path / "out.npz.part"
    write_folder_features(run, photos, straight, CPU)
    first, encoder = counted(run, fail_after=12)
    with pytest.raises(KeyboardInterrupt):
        write_folder_features(first, photos, out, CPU)
    assert encoder.seen == 15
    assert not out.exists()
    # A kill leaves half a line, or features whose lines are missing; a changed file is computed again.
    (part / "rows.jsonl").write_bytes((part / "rows.jsonl").read_bytes()[:-3])
    os.utime(photos / find_images(photos)[0], ns=(1, 1))
    said: list[str] = []
    second, encoder = counted(run)
    assert write_folder_features(second, photos, out, CPU, log=said.append) == 24
    assert encoder.seen == 24 - 15 + 2
    assert said == [f"{out}: going on; the features of 13 of 24 images are there"]
    assert not part.exists()
    a, b = np.load(straight), np.load(out)
    assert a["files"].tolist() == b["files"].tolist()
    # In other batches the last digits are rounded otherwise.
    np.testing.assert_allclose(a["features"], b["features"], rtol=1e-5, atol=1e-5)


def test_what_another_encoder_has_computed_is_not_taken(run: Pretrained, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    (photos / "broken.jpg").write_text("no image")
    with pytest.raises(BrokenImages):
        write_folder_features(run, photos, out, CPU)
    other, encoder = counted(Pretrained(**{**vars(run), "digest": "sha256:other"}))
    assert write_folder_features(other, photos, out, CPU, skip_broken=True, log=lambda line: None) == 24
    assert encoder.seen == 24
    assert str(np.load(out)["encoder"]) == "sha256:other"


def test_broken_files_are_named_all_at_once_and_nothing_is_computed_twice(
    run: Pretrained, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["birds/empty.png", "cats/cut.jpg", "text.jpg"]
    (photos / names[0]).write_bytes(b"")
    (photos / names[1]).write_bytes((photos / "cats/03.jpg").read_bytes()[:200])
    (photos / names[2]).write_text("no image")
    out = tmp_path / "out.npz"
    command = ["features", str(run.file.parent), str(photos), "--out", str(out), "--threads", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("wmse: error: 3 images cannot be read: remove or repair them, or leave them out")
    assert [name for name in names if f"  {photos / name}: " not in said] == []
    assert len((tmp_path / "out.npz.part/broken.txt").read_text().splitlines()) == 3
    assert not out.exists()
    with pytest.raises(BrokenImages) as caught:
        folder_features(run.encoder, photos)
    assert sorted(caught.value.files) == names
    again, encoder = counted(run)
    with pytest.raises(BrokenImages):
        write_folder_features(again, photos, out, CPU, log=lambda line: None)
    assert encoder.seen == 0
    assert main([*command, "--skip-broken"]) == 0
    said = capsys.readouterr().out
    assert "left out: 3 images, which cannot be read: birds/empty.png, cats/cut.jpg, text.jpg\n" in said
    assert "the features of 24 images" in said
    assert len(np.load(out)["files"]) == 24


def test_a_folder_of_broken_files_alone_and_features_that_are_not_finite(run: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_text("no image")
    with pytest.raises(DataError, match="none of its images can be read"):
        write_folder_features(run, tmp_path / "a", tmp_path / "o.npz", CPU, skip_broken=True, log=lambda line: None)
    Image.new("RGB", (20, 20)).save(tmp_path / "a/x.png")
    run.encoder.bn1.bias.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        write_folder_features(run, tmp_path / "a", tmp_path / "o.npz", CPU)


def test_the_name_of_the_file_is_checked_before_anything_is_computed(
    run: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"out\.csv: the name must end in \.npz or \.parquet"):
        write_folder_features(run, photos, tmp_path / "out.csv", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Parquet needs pyarrow: `pip install pyarrow`"):
        write_folder_features(run, photos, tmp_path / "out.parquet", CPU)


def test_a_name_that_is_no_text(run: Pretrained, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    write_folder_features(run, tmp_path, tmp_path / "out.npz", CPU)
    assert np.load(tmp_path / "out.npz")["files"].tolist() == [name]
    assert json.dumps(name)
