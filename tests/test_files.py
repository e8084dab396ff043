"""Atomic writes and seals, also when the writer fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wmse.files import (
    atomic_path,
    content_digest,
    file_digest,
    write_json,
    write_sealed_json,
    write_text,
)


def test_an_atomic_write_makes_folders_and_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new: ü"):
        write_text(target, text)
        assert target.read_bytes() == text.encode()
    assert list(target.parent.iterdir()) == [target]


def test_the_target_keeps_its_old_content_until_the_write_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": {"x": True}}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert text.startswith('{\n  "b": [')
    assert text.endswith("}\n")


def test_content_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, 1)
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert target.read_text() == "1\n"


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert file_digest(tmp_path / "x", "md5") == hashlib.md5(b"abc" * 100_000).hexdigest()


def test_a_seal_holds_for_the_content_whatever_its_layout_and_breaks_with_any_value(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "x.json", {"b": [1, 2.5, None], "a": {"x": True}})
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["sha256"] == content_digest(dict(reversed(content.items())))
    assert content["sha256"] == hashlib.sha256(b'{"a": {"x": true}, "b": [1, 2.5, null]}').hexdigest()
    content["b"][1] = 2.6
    assert content["sha256"] != content_digest(content)
