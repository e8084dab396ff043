"""Folders of one's own images: read in full before anything is stored, then prepared like every benchmark."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.folders import KINDS, encoded, look, picture, write_classes
from builders.raw import put
from wmse.datasets import SOURCES, Prepared, find_folders, load, plan_folders, prepare
from wmse.datasets.decode import decode_any
from wmse.datasets.own import fitted
from wmse.errors import DataError


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    SOURCES.pop("mine", None)


def prepared(folder: Path, lines: list[str] | None = None, **settings: Any) -> Prepared:
    """The folder as the data set `mine`, prepared beside it."""
    log = (lines if lines is not None else []).append
    return prepare("mine", folder.parent / "data", folder=look(folder, **settings), log=log)


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_shows_the_same_image(kind: str) -> None:
    image = picture(100)
    pixels = decode_any(encoded(image, kind), "a")
    difference = np.abs(pixels.astype(int) - np.asarray(image).astype(int))
    assert pixels.shape == (30, 40, 3)
    assert difference.mean() < (8 if kind in ("jpg", "gif", "webp") else 1e-9)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg")]
)
def test_modes_become_rgb_as_pillow_translates_them(mode: str, kind: str) -> None:
    content = encoded(picture(100).convert(mode), kind)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(decode_any(content, "a"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    pixels = decode_any(encoded(Image.fromarray(levels), kind), "a")
    assert np.array_equal(pixels, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize(("mode", "words"), [("F", "floating-point"), ("I", "32-bit integers"), ("LAB", "L*a*b*")])
def test_what_has_no_levels_is_refused_by_name(mode: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        decode_any(encoded(Image.new(mode, (9, 9)), "tif"), "there/a.tif")
    assert "there/a.tif" in str(error.value)
    assert words in str(error.value)


def test_programs_are_not_run() -> None:
    with pytest.raises(DataError, match=r"a\.eps: .*EPS.*program"):
        decode_any(encoded(picture(1), "eps"), "a.eps")


def test_transparent_parts_are_white_and_the_first_of_several_images_counts() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (0, 0, 4, 8))
    pixels = decode_any(encoded(image, "png"), "a")
    assert pixels[0, 0].tolist() == [200, 10, 10]
    assert pixels[0, 7].tolist() == [255, 255, 255]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "tif", save_all=True, append_images=frames[1:])
    assert decode_any(content, "a")[0, 0].tolist() == [255, 0, 0]


def test_photographs_are_turned_as_their_camera_says() -> None:
    image, exif = picture(100), Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to see it upright
    assert decode_any(encoded(image, "jpg", exif=exif), "a").shape == (40, 30, 3)


# --- preparation ------------------------------------------------------------------------------------------------------


def test_small_sets_become_arrays(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10, "dog": 5})
    survey = look(folder)
    data = prepared(folder)
    assert {name: data[name].images.shape for name in data} == {
        "pretrain": (12, 3, 16, 16),
        "train": (12, 3, 16, 16),
        "test": (3, 3, 16, 16),
    }
    assert data["train"].labels.tolist() == [0] * 8 + [1] * 4
    assert data["test"].labels.tolist() == [0, 0, 1]
    names = [entry.name for entry in survey.entries if entry.split == "train"]
    for name, image in zip(names, data["train"].images, strict=True):
        expected = fitted(decode_any((folder / name).read_bytes(), name), 16)
        assert np.array_equal(image.transpose(1, 2, 0), expected), name
    source = SOURCES["mine"]
    assert (source.num_classes, source.image_size, source.labelled) == (2, 16, True)
    pixels = data["pretrain"].images.transpose(0, 2, 3, 1).reshape(-1, 3) / 255
    np.testing.assert_allclose([source.mean, source.std], [pixels.mean(0), pixels.std(0)], atol=1e-6)
    data.verify()


def test_large_sets_stay_files_with_the_same_rows(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10, "dog": 5})
    arrays = prepared(folder)
    labels, images = ([np.array(getattr(arrays[name], kind)) for name in arrays] for kind in ("labels", "images"))
    files = prepared(folder, store="files")
    assert all(np.array_equal(files[name].labels, expected) for name, expected in zip(files, labels, strict=True))
    source = SOURCES["mine"]
    assert (source.image_size, source.streamed) == (None, True)
    for image, file in zip(images[2], files["test"].files, strict=True):
        assert np.array_equal(fitted(source.decode(file.read_bytes(), str(file)), 16), image.transpose(1, 2, 0))
    packed = prepare("mine", tmp_path / "data", folder=look(folder, store="files"), pack=True, log=lambda line: None)
    assert packed.packed
    assert packed.digest == files.digest


def test_the_digest_of_files_is_that_of_their_content(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 6})
    digest = prepared(folder, store="files").digest
    target = folder / "cat/cat-3.bmp"  # of a size that does not tell what is in it
    target.write_bytes(encoded(picture(7, Image.open(target).size), "bmp"))
    assert prepared(folder, store="files").digest != digest


def test_unlabelled_images_are_for_pretraining(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures/train", {"cat": 3}).parent
    write_classes(folder / "val", {"cat": 2}, seed=20)
    put(folder / "train/extra.png", encoded(picture(9), "png"))
    data = prepared(folder)
    assert data["pretrain"].labels.tolist() == [0, 0, 0, -1]
    assert data["train"].labels.tolist() == [0, 0, 0]
    alone = prepared(folder, labelled=False)
    assert list(alone) == ["pretrain"]
    assert alone["pretrain"].labels.tolist() == [-1] * 6
    assert not SOURCES["mine"].labelled


def broken_folder(tmp_path: Path) -> Path:
    folder = write_classes(tmp_path / "pictures", {"cat": 8, "dog": 8})
    whole = encoded(picture(3, (90, 90)), "png")
    put(folder / "cat/cut.png", whole[: len(whole) // 2])
    put(folder / "cat/empty.jpg", b"")
    put(folder / "dog/page.jpg", "<html>404</html>")
    put(folder / "dog/depth.tif", encoded(Image.new("F", (9, 9)), "tif"))
    return folder


def test_all_broken_images_are_named_at_once_before_anything_is_stored(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path)
    with pytest.raises(DataError) as error:
        prepared(folder)
    message = str(error.value)
    for words in (
        "4 of 20",
        "cat/cut.png",
        "cat/empty.jpg",
        "dog/page.jpg",
        "dog/depth.tif: ",
        "leave_out_broken: true",
    ):
        assert words in message
    assert len((tmp_path / "data/mine/broken-files.txt").read_text().splitlines()) == 4
    assert not (tmp_path / "data/mine/prepared").exists()


def test_broken_images_can_be_left_out(tmp_path: Path) -> None:
    lines: list[str] = []
    data = prepared(broken_folder(tmp_path), lines, leave_out_broken=True)
    assert sum(len(data[name]) for name in ("train", "test")) == 16
    assert sorted(data.manifest["own"]["broken"]) == ["cat/cut.png", "cat/empty.jpg", "dog/depth.tif", "dog/page.jpg"]
    (told,) = (line for line in lines if "left out" in line)
    assert "4 of 20 images" in told
    listed = tmp_path / "data/mine/broken-files.txt"
    assert str(listed) in told
    assert "cat/cut.png: " in listed.read_text()


def test_a_class_that_is_broken_as_a_whole_is_an_error(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 8})
    put(folder / "dog/a.jpg", b"x")
    with pytest.raises(DataError, match="a class, or all there was to train on, is gone"):
        prepared(folder, leave_out_broken=True)


def test_copies_among_the_images_to_train_on_are_told(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 8})
    put(folder / "cat/copy.jpg", (folder / "cat/cat-0.jpg").read_bytes())
    put(folder / "cat/again.jpg", (folder / "cat/cat-0.jpg").read_bytes())
    lines: list[str] = []
    prepared(folder, lines, labelled=False)
    (told,) = (line for line in lines if "are copies of" in line)
    assert "2 images to train on are copies" in told
    assert told.endswith(": cat/again.jpg and cat/cat-0.jpg, cat/again.jpg and cat/copy.jpg")


def test_images_of_the_test_that_are_trained_on_are_reported(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures/train", {"cat": 8}).parent
    write_classes(folder / "val", {"cat": 3}, seed=40)
    first = (folder / "train/cat/cat-0.jpg").read_bytes()
    put(folder / "val/cat/same.jpg", first)
    image = Image.open(io.BytesIO((folder / "train/cat/cat-1.png").read_bytes())).convert("RGB")
    put(folder / "val/cat/smaller.jpg", encoded(image.resize((25, 25)), "jpg", quality=80))
    lines: list[str] = []
    data = prepared(folder, lines)
    assert data.manifest["own"]["duplicates"] == {"equal": 1, "alike": 1}
    warnings = [line for line in lines if "warning" in line]
    assert "train/cat/cat-0.jpg and val/cat/same.jpg" in warnings[0]
    assert "train/cat/cat-1.png and val/cat/smaller.jpg" in warnings[1]


def test_a_folder_that_has_changed_is_prepared_again_and_one_that_has_not_is_not(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10})
    digest = look(folder).digest
    before, lines = prepared(folder).digest, []
    manifest = tmp_path / "data/mine/prepared/manifest.json"
    date = manifest.stat().st_mtime_ns
    assert prepared(folder, lines).digest == before
    assert (manifest.stat().st_mtime_ns, lines) == (date, [])
    assert load("mine", tmp_path / "data", digest=digest[:16]).digest == before

    put(folder / "cat/more.png", encoded(picture(5), "png"))
    assert prepared(folder, lines).digest != before
    assert "has changed" in lines[0]
    with pytest.raises(DataError, match="another state of the folder"):
        load("mine", tmp_path / "data", digest=digest[:16])


def test_an_image_that_was_replaced_by_one_of_its_size_is_noticed_by_its_date(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10})
    before, target = prepared(folder).digest, folder / "cat/cat-3.bmp"
    status = target.stat()
    target.write_bytes(encoded(picture(7, Image.open(target).size), "bmp"))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert target.stat().st_size == status.st_size
    assert prepared(folder).digest != before


def test_prepared_folders_are_found_and_others_are_planned(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10})
    plan_folders([look(folder)], tmp_path / "data")
    assert SOURCES["mine"].splits["test"].stop == 2
    with pytest.raises(DataError, match=r"unknown benchmark 'mine'.*`datasets`"):
        load("mine", tmp_path / "data")
    prepared(folder)
    del SOURCES["mine"]
    find_folders(tmp_path / "data")
    assert SOURCES["mine"].own["classes"] == ["cat"]


def test_a_damaged_prepared_form_is_written_again(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 10})
    before = prepared(folder).digest
    (tmp_path / "data/mine/prepared/train-images.npy").unlink()
    assert prepared(folder).digest == before
