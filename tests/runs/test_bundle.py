"""A finished run on its way into another folder of results: the same files, or one message and nothing at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.hostile import circle, tree
from builders.raw import put, tar_bytes
from builders.runs import make_job, tiny_spec
from wmse.cli import main
from wmse.config import RunSpec
from wmse.datasets import ArrayDataset
from wmse.errors import DataError
from wmse.files import json_text, sealed
from wmse.locks import exclusive_lock
from wmse.report.results import load_run
from wmse.runs import bundle as bundles
from wmse.runs.bundle import BUNDLE, import_bundle, write_bundle
from wmse.runs.evaluate import evaluate
from wmse.runs.folder import RunFolder
from wmse.runs.verify import verify
from wmse.training import pretrain
from wmse.training.checkpoint import load_checkpoint

Files = dict[str, bytes]


def spec_in(folder: Path) -> RunSpec:
    return RunSpec.from_dict(json.loads((folder / "result.json").read_text())["spec"])


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    """A copy of the finished run in a folder of results, with the logs that the workflow would have left."""
    folder = RunFolder.of(tmp_path / "results", spec_in(finished).run)
    shutil.copytree(finished, folder.path)
    folder.pretrain_log.write_text("epoch 1/3\n")
    folder.evaluate_log.write_text("features\n")
    return folder


def read_archive(path: Path) -> Files:
    """The members of a bundle, by their names in it."""
    with tarfile.open(path) as tar:
        return {member.name.partition("/")[2]: tar.extractfile(member).read() for member in tar}


def write_archive(path: Path, files: Files, top: str = "run/") -> Path:
    return put(path, gzip.compress(tar_bytes({top + name: content for name, content in files.items()})))


def resealed(files: Files, /, **changes: Any) -> Files:
    """A bundle whose record was made to fit: what somebody writes who can write a digest."""
    content = {**json.loads(files[BUNDLE]), **changes}
    return {BUNDLE: json_text(sealed(content)).encode(), **{k: v for k, v in files.items() if k != BUNDLE}}


def refused(bundle: Path, results: Path, *words: str) -> None:
    """Nothing is imported, and the message names the bundle and says these words."""
    before = tree(results)
    with pytest.raises(DataError) as caught:
        import_bundle(bundle, results)
    assert [word for word in (str(bundle), *words) if word not in str(caught.value)] == []
    assert tree(results) - before <= {results / ".snakemake.lock"}


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.tar.gz", "run.tar", "run"])
def test_an_imported_run_is_the_run(name: str, run: RunFolder, tmp_path: Path) -> None:
    out, digest = write_bundle(run, tmp_path / name)
    folder, found, new = import_bundle(out, tmp_path / "other")
    assert (out, found, new) == (tmp_path / name, digest, True)
    assert folder.path == tmp_path / "other/runs" / spec_in(run.path).run
    names = {"encoder.safetensors", "history.csv", "pretrain.json", "result.json", "pretrain.log", "evaluate.log"}
    (checkpoint,) = folder.checkpoints.iterdir()
    assert {path.name for path in folder.path.iterdir()} == {*names, "checkpoints", "imported.json"}
    for path in (*names, f"checkpoints/{checkpoint.name}"):
        assert (folder.path / path).read_bytes() == (run.path / path).read_bytes()
    origin = json.loads(folder.imported.read_text())
    assert (origin["bundle"], origin["digest"]) == (name, digest)
    assert verify([], tmp_path / "nowhere", tmp_path / "other").problems == []
    assert load_run(folder.path).metrics == load_run(run.path).metrics
    assert write_bundle(folder, tmp_path / "again.tar")[1] == digest


def test_the_same_run_gives_the_same_bytes(run: RunFolder, tmp_path: Path) -> None:
    first, _ = write_bundle(run, tmp_path / "a.tar.gz")
    for path in run.path.iterdir():
        os.utime(path, (1, 1))
    second, _ = write_bundle(run, tmp_path / "b.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        members = tar.getmembers()
    assert [member.name for member in members][1:] == sorted(member.name for member in members[1:])
    assert members[0].name.endswith(f"/{BUNDLE}")
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


def test_a_run_in_a_folder_of_another_name_is_bundled_by_its_own(run: RunFolder, tmp_path: Path) -> None:
    first = RunFolder(run.path.rename(tmp_path / "first"))
    folder, *_ = import_bundle(write_bundle(first, tmp_path / "a.tar.gz")[0], tmp_path / "other")
    assert folder.path == tmp_path / "other/runs" / spec_in(first.path).run


def test_head_and_optimiser_go_along_unless_left_out(run: RunFolder, data: ArrayDataset, tmp_path: Path) -> None:
    spec = spec_in(run.path)
    folder, *_ = import_bundle(write_bundle(run, tmp_path / "a.tar.gz")[0], tmp_path / "with")
    here, there = (load_checkpoint(place.checkpoints, spec) for place in (run, folder))
    assert any(name.startswith("head.") for name in there["method"])
    assert there["progress"]["step"] == json.loads(run.pretrained.read_text())["pretrain"]["steps"]
    for key, moments in here["optimizer"]["state"].items():
        assert torch.equal(moments["exp_avg"], there["optimizer"]["state"][key]["exp_avg"])
    folder, *_ = import_bundle(write_bundle(run, tmp_path / "b.tar.gz", checkpoint=False)[0], tmp_path / "without")
    assert not folder.checkpoints.exists()
    assert verify([], tmp_path / "nowhere", tmp_path / "without").problems == []


def test_an_imported_run_is_not_trained_again_and_can_be_evaluated(
    run: RunFolder, data: ArrayDataset, tmp_path: Path
) -> None:
    folder, *_ = import_bundle(write_bundle(run, tmp_path / "a.tar.gz")[0], tmp_path / "other")
    before = {path: path.read_bytes() for path in folder.path.rglob("*.*") if path.is_file()}
    lines: list[str] = []
    job = make_job(spec_in(run.path), data, folder.path, log=lines.append)
    pretrain(job)
    assert lines == [f"{spec_in(run.path).run}: is trained already; `wmse evaluate` measures its encoder"]
    assert {path: path.read_bytes() for path in before} == before
    metrics = json.loads(before[folder.result])["metrics"]
    assert evaluate(job)["metrics"] == metrics


def test_a_lost_encoder_of_an_imported_run_comes_back_from_its_checkpoint(
    run: RunFolder, data: ArrayDataset, tmp_path: Path
) -> None:
    folder, *_ = import_bundle(write_bundle(run, tmp_path / "a.tar.gz")[0], tmp_path / "other")
    before = folder.encoder.read_bytes()
    folder.encoder.unlink()
    pretrain(make_job(spec_in(run.path), data, folder.path))
    assert folder.encoder.read_bytes() == before


def test_a_baseline_has_a_result_alone(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("pixels")
    folder = RunFolder.of(tmp_path / "results", spec.run)
    evaluate(make_job(spec, data, folder.path))
    out, _ = write_bundle(folder, tmp_path / "pixels.tar.gz")
    assert sorted(read_archive(out)) == [BUNDLE, "result.json"]
    imported, *_ = import_bundle(out, tmp_path / "other")
    assert load_run(imported.path).metrics == load_run(folder.path).metrics


def test_the_commands(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, results = tmp_path / "a.tar.gz", tmp_path / "other"
    assert main(["bundle", str(run.path), "--out", str(out)]) == 0
    assert f"wrote {out}: bundle sha256:" in capsys.readouterr().out
    for words in ("imported from", "is there already, as in"):
        assert main(["import", str(out), "--results", str(results)]) == 0
        assert f"{results}/runs/{spec_in(run.path).run}: {words} {out}: bundle sha256:" in capsys.readouterr().out
    assert main(["verify", "--results", str(results), "--data-root", str(tmp_path / "nowhere")]) == 0
    assert main(["import", str(tmp_path / "none"), "--results", str(tmp_path / "new")]) == 1
    assert "none: no such file or folder: name a bundle" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# --- what cannot be bundled -------------------------------------------------------------------------------------------


def unfinished(run: RunFolder) -> None:
    for path in (run.result, run.pretrained):
        path.unlink()


def forgotten(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unfinished, r"is not finished: `wmse pretrain cifar10/wmse-2/seed0` goes on with it"),
        (lambda run: run.result.unlink(), r"is not finished: `wmse evaluate cifar10/wmse-2/seed0` goes on with it"),
        (forgotten, r"has no checkpoint of the last step \(9\).*`wmse bundle --without-checkpoint`"),
        (lambda run: flipped(run.encoder), r"pretrain\.json: vouches for another encoder\.safetensors than there is"),
        (lambda run: run.pretrained.unlink(), r"pretrain\.json: is missing: of results alone there is no bundle"),
        (
            lambda run: run.result.write_text(run.result.read_text().replace("cifar10", "cifar11")),
            r"result\.json: was changed after it was written: remove it and run",
        ),
        (lambda run: run.history.unlink(), r"history\.csv: is missing: run `wmse verify`"),
        (
            lambda run: flipped(next(run.checkpoints.iterdir())),
            r"\.pt: is not what its name says: `wmse bundle --without",
        ),
        (lambda run: shutil.rmtree(run.path), r"there is no such run: `wmse runs` lists"),
    ],
)
def test_what_is_not_finished_and_intact_is_not_bundled(
    spoil: Callable[[RunFolder], Any], message: str, run: RunFolder, tmp_path: Path
) -> None:
    spoil(run)
    with pytest.raises(DataError, match=message):
        write_bundle(run, tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()


def test_a_run_at_work_is_not_bundled_and_a_folder_not_overwritten(run: RunFolder, tmp_path: Path) -> None:
    with exclusive_lock(run.lock, "wmse evaluate it"), pytest.raises(DataError, match=r"wmse evaluate it .* at work"):
        write_bundle(run, tmp_path / "a.tar.gz")
    mine = put(tmp_path / "out/mine", "mine")
    with pytest.raises(DataError, match="out: exists already and stays as it is"):
        write_bundle(run, tmp_path / "out")
    assert tree(tmp_path / "out") == {mine}


# --- what is not imported ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(run: RunFolder, tmp_path: Path) -> Files:
    """What a good bundle holds."""
    return read_archive(write_bundle(run, tmp_path / "good.tar.gz")[0])


def with_digest(files: Files, name: str, content: bytes) -> Files:
    """A bundle with another file, for which its record was made to fit."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return resealed({**files, name: content}, files={**json.loads(files[BUNDLE])["files"], name: digest})


def without(files: Files, *names: str) -> Files:
    return {name: content for name, content in files.items() if name not in names}


def unlisted(files: Files, *names: str) -> Files:
    """A bundle without some files, whose record was made to fit."""
    listed = json.loads(files[BUNDLE])["files"]
    left = {name: digest for name, digest in listed.items() if name not in names}
    return resealed(without(files, *names), files=left)


def record(files: Files, name: str, /, **changes: Any) -> bytes:
    return json_text(sealed({**json.loads(files[name]), **changes})).encode()


OTHER = "cifar10/wmse-2/seed0-00000000"
SPOILT: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no record": (lambda files: without(files, BUNDLE), "is no bundle"),
    "no record first": (lambda files: {**without(files, BUNDLE), BUNDLE: files[BUNDLE]}, "is no bundle"),
    "a large record": (lambda files: {**files, BUNDLE: bytes(1 << 21)}, "is no bundle"),
    "a record of noise": (lambda files: {**files, BUNDLE: b"\xff{"}, "cannot be read as JSON"),
    "a deep record": (lambda files: {**files, BUNDLE: b"[" * 100_000}, "cannot be read as JSON"),
    "a list as record": (lambda files: {**files, BUNDLE: b"[]"}, "must hold a JSON object"),
    "an open record": (lambda files: {**files, BUNDLE: files[BUNDLE].replace(b"wmse-2", b"wmse-4")}, "was changed"),
    "a later format": (lambda files: resealed(files, format=2), "key 'format' is 2"),
    "no run": (lambda files: resealed(files, run=5), "key 'run' must be of type str"),
    "a run elsewhere": (lambda files: resealed(files, run="../x/seed0-00000000"), "not the name of a run"),
    "a run above": (lambda files: resealed(files, run="a/../seed0-00000000"), "not the name of a run"),
    "another run": (lambda files: resealed(files, run=OTHER), f"not to {OTHER}"),
    "a path above": (lambda files: with_digest(files, "../x", b""), "lists a file that no run has"),
    "a strange file": (lambda files: with_digest(files, "run.sh", b""), "lists a file that no run has"),
    "a listed number": (lambda files: resealed(files, files={"result.json": 5}), "lists no digest of result.json"),
    "a strange checkpoint": (
        lambda files: with_digest(files, f"checkpoints/step-000000001-{'0' * 16}.pt", b""),
        "not what its name says",
    ),
    "a lost file": (lambda files: without(files, "history.csv"), "history.csv: missing"),
    "a lost file, unlisted": (lambda files: unlisted(files, "history.csv"), "history.csv: missing"),
    "no result": (lambda files: unlisted(files, "result.json"), "result.json: missing"),
    "one more file": (lambda files: {**files, "more.txt": b""}, "'more.txt', which bundle.json does not list"),
    "a damaged file": (lambda files: {**files, "history.csv": files["history.csv"] + b"1"}, "history.csv: damaged"),
    "another history": (
        lambda files: with_digest(files, "history.csv", b"epoch\n"),
        "vouches for another history.csv than there is",
    ),
    "a changed result": (
        lambda files: with_digest(files, "result.json", files["result.json"].replace(b"cpu", b"gpu")),
        "result.json: was changed after it was written",
    ),
    "another specification": (
        lambda files: with_digest(files, "result.json", record(files, "result.json", spec_hash="0" * 64)),
        "key 'spec_hash' is 00000000",
    ),
    "another run's result": (
        lambda files: with_digest(files, "result.json", record(files, "result.json", run=f"x/{OTHER}")),
        "result.json: key 'run' is",
    ),
    "a training that is no block": (
        lambda files: with_digest(files, "pretrain.json", record(files, "pretrain.json", files=[])),
        "pretrain.json: key 'files' must be of type dict",
    ),
    "a digest that is none": (
        lambda files: with_digest(files, "result.json", record(files, "result.json", files={"history.csv": [1]})),
        "result.json: vouches for another encoder.safetensors and history.csv",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_bundle_that_does_not_hold_together_is_refused(kind: str, files: Files, tmp_path: Path) -> None:
    spoil, words = SPOILT[kind]
    refused(write_archive(tmp_path / "bad.tar.gz", spoil(files)), tmp_path / "other", words)
    folder = tmp_path / "bad"
    for name, content in spoil(files).items():
        if ".." not in name:
            put(folder / name, content)
    if kind != "no record first":  # a folder has no order
        refused(folder, tmp_path / "other", "lists a file that no run has" if kind == "a path above" else words)


def opening(files: Files) -> bytes:
    """The first member of a good archive, which has no end yet."""
    size = tarfile.BLOCKSIZE * (1 - (-len(files[BUNDLE]) // tarfile.BLOCKSIZE))
    return tar_bytes({f"run/{BUNDLE}": files[BUNDLE]})[:size]


def special(name: str, kind: bytes, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (special("run/history.csv", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (special("run/history.csv", tarfile.LNKTYPE, "run/result.json"), "is a link or a device"),
        (special("run/history.csv", tarfile.CHRTYPE), "is a link or a device"),
        (special("run/history.csv", tarfile.FIFOTYPE), "is a link or a device"),
        (special("run/checkpoints", tarfile.DIRTYPE), "is no file in the bundle's folder"),
        (special("/etc/x", tarfile.REGTYPE), "points outside"),
        (special("run/../../x", tarfile.REGTYPE), "points outside"),
        (special("other/history.csv", tarfile.REGTYPE), "is no file in the bundle's folder"),
        (special("history.csv", tarfile.REGTYPE), "is no file in the bundle's folder"),
        (special("run/history.csv", tarfile.REGTYPE), "damaged: it is not what bundle.json lists"),
        (circle(), "damaged or truncated"),
    ],
)
def test_a_member_that_no_bundle_has_is_refused(member: bytes, words: str, files: Files, tmp_path: Path) -> None:
    refused(put(tmp_path / "bad.tar", opening(files) + member + bytes(1024)), tmp_path / "other", words)


def test_no_bundle_a_cut_one_and_a_bomb_are_refused(files: Files, tmp_path: Path) -> None:
    good = write_archive(tmp_path / "good.tar.gz", files).read_bytes()
    for content in (b"", b"text", good[: len(good) // 2], good[:-200] + bytes(200), b"PK\5\6" + bytes(18)):
        refused(put(tmp_path / "bad.tar.gz", content), tmp_path / "other")
    zeros = io.BytesIO()
    with gzip.open(zeros, "wb", compresslevel=9) as file:
        info = tarfile.TarInfo("run/history.csv")
        info.size = 1 << 28
        file.write(opening(files) + info.tobuf())
        for _ in range(1 << 8):
            file.write(bytes(1 << 20))
    refused(put(tmp_path / "bomb.tar.gz", zeros.getvalue()), tmp_path / "other", "unpacks to more than")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", tmp_path / "other", "no such file or folder")


def test_a_folder_with_a_link_is_refused(run: RunFolder, tmp_path: Path) -> None:
    out, _ = write_bundle(run, tmp_path / "bundle")
    (out / "history.csv").unlink()
    (out / "history.csv").symlink_to(run.history)
    refused(out, tmp_path / "other", "history.csv: is a link or a device; refused")


# --- what is there already --------------------------------------------------------------------------------------------


def test_another_run_of_that_name_stays_as_it_is(run: RunFolder, tmp_path: Path) -> None:
    out, _ = write_bundle(run, tmp_path / "a.tar.gz")
    result = json.loads(run.result.read_text())
    run.result.write_text(json_text(sealed({**result, "preset": "another"})))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"exists already, with another result\.json or none, and stays as it is"):
        import_bundle(out, tmp_path / "results")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_nobody_imports_while_snakemake_is_at_work(run: RunFolder, tmp_path: Path) -> None:
    out, _ = write_bundle(run, tmp_path / "a.tar.gz")
    with (
        exclusive_lock(tmp_path / "other/.snakemake.lock", "snakemake --cores 2"),
        pytest.raises(DataError, match="is locked by snakemake --cores 2"),
    ):
        import_bundle(out, tmp_path / "other")


def test_an_import_that_dies_leaves_nothing_and_the_next_one_works(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = write_bundle(run, tmp_path / "a.tar.gz")
    results = tmp_path / "other"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(results))

    for name in ("write_sealed_json", "durable_rename"):
        with monkeypatch.context() as patch:
            patch.setattr(bundles, name, full)
            with pytest.raises(OSError, match="No space left"):
                import_bundle(out, results)
        assert not list(results.glob("runs/*/*/*"))
    put(results / ".import/left", "by one that was killed")
    folder, _, new = import_bundle(out, results)
    assert new
    assert not (results / ".import").exists()
    assert not (folder.path / "left").exists()


@pytest.mark.parametrize("name", ["imported.json", "encoder.safetensors", "history.csv", "result.json"])
def test_damage_to_an_imported_run_is_found(name: str, run: RunFolder, tmp_path: Path) -> None:
    folder, *_ = import_bundle(write_bundle(run, tmp_path / "a.tar.gz")[0], tmp_path / "other")
    flipped(folder.path / name)
    (problem,) = verify([], tmp_path / "nowhere", tmp_path / "other").problems
    assert problem.startswith(str(folder.path / name))
