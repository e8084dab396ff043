"""Which images a folder holds, and of which class and split: every layout, and a message for whatever is wrong."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from builders.folders import look, wanted, write_classes
from builders.raw import put
from wmse.errors import DataError
from wmse.image_folders import ARRAYS, FILES, LARGEST_ARRAYS, Entry, Survey


def found(survey: Survey) -> dict[str, tuple[str, str]]:
    return {entry.name: (entry.split, entry.label) for entry in survey.entries}


def test_class_folders_are_split_by_class_and_always_in_the_same_way(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 10, "dog": 25, "one": 1})
    survey = look(tmp_path)
    assert Counter((entry.label, entry.split) for entry in survey.entries) == {
        ("cat", "train"): 8,
        ("cat", "test"): 2,
        ("dog", "train"): 20,
        ("dog", "test"): 5,
        ("one", "train"): 1,
    }
    assert survey.classes == ["cat", "dog", "one"]
    assert [survey.count(split) for split in ("pretrain", "train", "test")] == [29, 29, 7]
    assert found(look(tmp_path)) == found(survey)
    assert found(look(tmp_path, split_seed=1)) != found(survey)


def test_an_image_more_moves_at_most_one_other_to_another_split(tmp_path: Path) -> None:
    before = found(look(write_classes(tmp_path, {"cat": 40})))
    put(tmp_path / "cat" / "zzz.png", b"")
    after = found(look(tmp_path))
    assert sum(after[name] != split for name, split in before.items()) <= 1


def test_split_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 3, "dog": 2})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1}, seed=50)
    put(tmp_path / "train/extra.png", b"x")
    survey = look(tmp_path)
    assert [survey.count(split) for split in ("pretrain", "train", "test")] == [6, 5, 2]
    assert found(survey)["train/extra.png"] == ("train", "")
    write_classes(tmp_path / "test", {"cat": 1}, seed=60)
    both = look(tmp_path)
    assert both.count("test") == 1
    assert "val/ is not used" in " ".join(both.notes)


def test_a_folder_train_alone_is_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 10})
    survey = look(tmp_path)
    assert [survey.count(split) for split in ("train", "test")] == [8, 2]
    assert survey.entries[0].name.startswith("train/cat/")


def test_without_labels_everything_is_for_pretraining(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", b"1")
    put(tmp_path / "2024/june/b.PNG", b"22")
    survey = look(tmp_path, labelled=False)
    assert found(survey) == {"a.jpg": ("train", ""), "2024/june/b.PNG": ("train", "")}
    assert (survey.classes, survey.count("pretrain"), survey.count("train")) == ([], 2, 0)


def test_other_files_are_named_and_hidden_ones_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "cat/._a.jpg", ".git/b.png", "cat/notes.txt", "cat/labels.h5", "README"):
        put(tmp_path / name, b"x")
    (tmp_path / "cat/loop").symlink_to(tmp_path)
    survey = look(tmp_path)
    assert list(found(survey)) == ["cat/a.jpg"]
    assert "3 files" in survey.notes[0]
    assert "1 .txt" in survey.notes[0]


def test_a_csv_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.png", "d.jpg"):
        put(tmp_path / name, name)
    put(tmp_path / "t.csv", "file,label,split\na.jpg,cat,train\nb.jpg,,train\nsub/c.png,cat,val\nd.jpg,,test\n")
    survey = look(tmp_path, csv="t.csv")
    assert found(survey) == {"a.jpg": ("train", "cat"), "b.jpg": ("train", "")}
    assert len(survey.notes) == 2
    put(tmp_path / "t.csv", f"file,label\n{tmp_path}/a.jpg,cat\nb.jpg,cat\nsub/../sub/c.png,cat\n")
    assert Counter(split for split, _ in found(look(tmp_path, csv="t.csv")).values()) == {"train": 2, "test": 1}


def test_every_bad_line_of_a_csv_file_is_named_at_once(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", "a")
    lines = ["a.jpg,cat,train", "a.jpg,dog,train", "gone.jpg,cat,train", "../x.jpg,cat,train", "a.jpg,cat,trian"]
    put(tmp_path / "t.csv", "\n".join(["file,label,split", *lines]))
    with pytest.raises(DataError) as error:
        look(tmp_path, csv="t.csv")
    message = str(error.value)
    for words in ("4 lines", "line 3", "twice", "gone.jpg: No such file", "does not lie in", "did you mean 'train'"):
        assert words in message


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        ([], {}, "holds no image"),
        (["test/cat/a.jpg"], {}, "no train/"),
        (["train/cat/a.jpg", "test/cta/b.jpg"], {}, "no training image of class 'cta'"),
        (["cat/a\nb.jpg"], {}, "cannot be listed"),
        (["a.jpg"], {"csv": "gone.csv"}, "gone.csv: No such file"),
        (["a.jpg", "t.csv"], {"csv": "t.csv"}, "has no column 'file'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: list[str], settings: dict[str, str], words: str) -> None:
    for name in files:
        put(tmp_path / name, "x")
    with pytest.raises(DataError) as error:
        look(tmp_path, **settings)
    assert words in str(error.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"birds: no such folder"):
        look(tmp_path / "birds")


def test_the_digest_is_that_of_the_content_and_the_state_that_of_the_folder(tmp_path: Path) -> None:
    first, second = write_classes(tmp_path / "a", {"cat": 3}), write_classes(tmp_path / "b", {"cat": 3})
    one, other = look(first), look(second)
    assert one.digest == other.digest
    assert one.state != other.state
    os.utime(first / "cat/cat-0.jpg", ns=(1, 1))
    assert (look(first).digest == one.digest, look(first).state == one.state) == (True, False)
    put(first / "cat/more.png", b"x")
    assert look(first).digest != one.digest
    for settings in ({"image_size": 32}, {"store": "files"}, {"leave_out_broken": True}, {"labelled": False}):
        assert look(second, **settings).digest != other.digest, settings


def test_large_sets_stay_files_unless_told_otherwise(tmp_path: Path) -> None:
    settings = wanted(tmp_path, image_size=224)
    most = LARGEST_ARRAYS // (3 * 224 * 224)
    small, large = (Survey("mine", settings, (Entry("a", "", "train"),) * count) for count in (most, most + 1))
    assert (small.store, large.store) == (ARRAYS, FILES)
    assert replace(large, wanted=replace(settings, store=ARRAYS)).store == ARRAYS
