"""Disks that are full, read-only or out of reach, at every write: one message, nothing lost, and it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.figure  # noqa: F401 (heavy imports: once, not in every child)
import pytest

import wmse.features
import wmse.report.page
import wmse.report.plots  # noqa: F401 (with pandas, which another user may not be able to load)
from builders.runs import tiny_spec
from wmse.cli import main
from wmse.datasets import ArrayDataset, load, prepare
from wmse.datasets.download import download
from wmse.datasets.source import Archive
from wmse.errors import DataError
from wmse.report import PARTS
from wmse.runs.verify import verify

SPEC = tiny_spec("wmse-2", epochs=2, lr_drops=[1])
FULL = r"wmse: error: \S+: No space left on device: free some space; everything written so far is intact"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk:
    """A file system of its own, in memory, that can be full and read-only."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.filler = folder, folder / "filler"
        self._mount("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    def leave(self, free: int) -> None:
        """Fill it up to `free` bytes, in whole pages."""
        self.filler.unlink(missing_ok=True)
        status = os.statvfs(self.folder)
        self.filler.write_bytes(bytes(max(0, status.f_bavail - free // PAGE) * PAGE))

    def clear(self) -> None:
        self.filler.unlink(missing_ok=True)

    def read_only(self, on: bool) -> None:
        self._mount("mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.folder))

    def used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def unmount(self) -> None:
        self._mount("umount", str(self.folder))

    def _mount(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"NOT TESTED, no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    disks: list[Disk] = []

    def make(size: int) -> Disk:
        folder = tmp_path / f"disk{len(disks)}"
        folder.mkdir()
        disks.append(Disk(folder, size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


def run(arguments: list[object], log: Path, uid: int = 0) -> tuple[int, str]:
    """The command line in a forked child: its exit status (minus a signal's number) and its output."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            log.unlink(missing_ok=True)
            sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115 (until the end of the process)
            if uid:
                os.setgroups([]), os.setgid(uid), os.setuid(uid)
            status = main([str(argument) for argument in arguments])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text()


def stage(name: str, out: Path) -> list[object]:
    spec = json.dumps(SPEC.compact())
    return [name, "--spec", spec, "--out", out, "--threads", "1", "--log", out / f"{name}.log"]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def _small_data(data: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmse.datasets.load", lambda *arguments, **options: data)


def test_a_disk_that_gets_full_at_any_write_of_a_run_loses_nothing(
    new_disk: Callable[[int], Disk], tmp_path: Path, counts: Counter[str], long: bool
) -> None:
    disk, log = new_disk(16 << 20), tmp_path / "log"
    good = disk.folder / "good" / SPEC.run
    assert run(stage("pretrain", good), log)[0] == 0
    needed = disk.used()
    assert run(stage("evaluate", good), log)[0] == 0
    before, encoder = contents(good), (good / "encoder.safetensors").read_bytes()
    saved = max(path.stat().st_size for path in good.glob("checkpoints/*.pt"))
    points = [0, 2 * PAGE, saved // 2, saved + len(encoder) // 2, *range(needed - 5 * PAGE, needed + PAGE, PAGE)]
    failed_at = set()
    if long:
        points += [*range(PAGE, needed - 24 * PAGE, 4 * PAGE), *range(needed - 24 * PAGE, needed - 5 * PAGE, PAGE)]
    for free in points:
        out = disk.folder / str(free) / SPEC.run
        out.mkdir(parents=True)
        disk.leave(free)
        status, output = run(stage("pretrain", out), log)
        counts["faults"] += 1
        assert "Traceback" not in output
        assert status in (0, 1), output
        if status:
            assert re.search(FULL, output), output
            failed_at.add(Path(output.split("wmse: error: ")[1].split(":")[0]).name.split("-")[0])
        assert not list(out.rglob("*.tmp"))
        assert verify([out], tmp_path, tmp_path).problems == []
        disk.clear()
        assert run(stage("pretrain", out), log)[0] == 0
        assert (out / "encoder.safetensors").read_bytes() == encoder
        subprocess.run(["rm", "-r", disk.folder / str(free)], check=True)
    assert {"history.csv", "step", "encoder.safetensors", "pretrain.json"} <= failed_at
    assert contents(good) == before


def test_a_full_disk_leaves_the_old_encoder_result_tables_and_plots(
    new_disk: Callable[[int], Disk], tmp_path: Path, counts: Counter[str]
) -> None:
    disk, log = new_disk(32 << 20), tmp_path / "log"
    out, report = disk.folder / SPEC.run, disk.folder / "report"
    assert run(stage("pretrain", out), log)[0] == 0
    disk.leave(0)
    status, output = run(stage("evaluate", out), log)
    assert status == 1, output
    assert re.search(FULL, output)
    assert "result.json: No space left" in output
    disk.clear()
    assert run(stage("evaluate", out), log)[0] == 0
    assert run(["report", out, "--out", report], log)[0] == 0
    before = contents(disk.folder)
    commands = [["report", out, "--out", report, "--only", part] for part in PARTS]
    disk.leave(0)
    assert run(stage("pretrain", out), log)[0] == 0  # of a finished run there is nothing to write
    for command in (stage("evaluate", out), *commands):
        disk.leave(0)
        status, output = run(command, log)
        counts["faults"] += 1
        disk.clear()
        assert status == 1, output
        assert re.search(FULL, output), output
        assert "Traceback" not in output
        after = contents(disk.folder)
        assert not [name for name in before if not name.endswith((".log", ".lock")) and after[name] != before[name]]


def test_a_log_and_events_that_cannot_be_written_end_no_training(tmp_path: Path, counts: Counter[str]) -> None:
    out = tmp_path / SPEC.run
    out.mkdir(parents=True)
    (out / "pretrain.log").symlink_to("/dev/full")
    (out / "tensorboard").write_text("no folder")
    status, output = run(stage("pretrain", out), tmp_path / "log")
    counts["faults"] += 2
    assert status == 0, output
    assert output.count("pretrain.log: No space left on device; going on without it") == 1
    assert output.count("going on without TensorBoard's events") == 1
    command = f"import sys; from wmse.cli import main; sys.exit(main({['verify', '--results', str(out)]}))"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" > /dev/full', sys.executable, command], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert "the output: No space left on device; going on without it" in done.stderr


def test_a_disk_that_gets_full_while_data_is_prepared(
    new_disk: Callable[[int], Disk], tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, log = new_disk(64 << 20), tmp_path / "log"
    arguments: list[object] = ["prepare", "fashion_mnist", "--data-root", disk.folder / "data"]
    disk.leave(1 << 20)
    status, output = run(arguments, log)
    assert status == 1
    assert "fashion_mnist needs 0.0 GB, only 0.0 GB are free" in output
    monkeypatch.setattr("wmse.datasets.prepared._check_space", lambda *arguments: None)  # it was free a moment ago
    whole = 12_000 * (3 * 32 * 32 + 8)
    for free in (0, PAGE, whole // 3, whole - (2 << 20), whole - (80 << 10), whole):
        shutil.rmtree(disk.folder / "data", ignore_errors=True)
        disk.leave(free)
        status, output = run(arguments, log)
        counts["faults"] += 1
        assert status == 1, (free, output)  # not -7, a SIGBUS
        assert re.search(FULL, output), output
        assert not list(disk.folder.rglob("manifest.json"))
    disk.clear()
    assert run(arguments, log)[0] == 0
    expected = prepare("fashion_mnist", tmp_path / "data", log=lambda line: None).digest
    assert load("fashion_mnist", disk.folder / "data", verify=True).digest == expected


def test_a_download_onto_a_full_disk_goes_on_when_there_is_space(
    new_disk: Callable[[int], Disk], tmp_path: Path, counts: Counter[str]
) -> None:
    disk, content = new_disk(8 << 20), os.urandom(4 << 20)
    (tmp_path / "served").write_bytes(content)
    digest, url = f"sha256:{hashlib.sha256(content).hexdigest()}", (tmp_path / "served").as_uri()
    archive = Archive("x.tar.gz", len(content), digest, (url, url), "x", "", {})
    disk.leave(1 << 20)
    counts["faults"] += 1
    with pytest.raises(DataError, match=r"x\.tar\.gz\.part: .*No space left on device") as caught:
        download(archive, disk.folder / archive.name, log=lambda line: None)
    assert str(caught.value).count("No space") == 1  # no other address was tried
    disk.clear()
    download(archive, disk.folder / archive.name, log=lambda line: None)
    assert (disk.folder / archive.name).read_bytes() == content


def test_a_read_only_disk_is_one_message_and_reading_still_works(
    new_disk: Callable[[int], Disk], tmp_path: Path, counts: Counter[str]
) -> None:
    disk, log = new_disk(32 << 20), tmp_path / "log"
    out = disk.folder / SPEC.run
    for name in ("pretrain", "evaluate"):
        assert run(stage(name, out), log)[0] == 0
    before = contents(disk.folder)
    disk.read_only(True)
    data, report = disk.folder / "data", disk.folder / "report"
    reading = [["verify", out, "--data-root", data], ["report", out, "--out", tmp_path / "report"]]
    writing = [["report", out, "--out", report], ["prepare", "fashion_mnist", "--data-root", data]]
    for command in (stage("pretrain", out), stage("evaluate", out), *writing):
        status, output = run(command, log)
        counts["faults"] += 1
        assert status == 1, output
        assert re.search(r"wmse: error: \S+: Read-only file system: mount it for writing", output), output
    assert [run(command, log)[0] for command in reading] == [0, 0]
    assert contents(disk.folder) == before
    disk.read_only(False)


def test_folders_and_files_of_another_user_are_one_message(tmp_path: Path, counts: Counter[str]) -> None:
    if os.getuid():
        pytest.skip("NOT TESTED: only root can become another user")
    for folder in (tmp_path, *tmp_path.parents):
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):  # pytest's own, which are private
            folder.chmod(0o755)
    out, log = tmp_path / SPEC.run, tmp_path / "log"
    for name in ("pretrain", "evaluate"):
        assert run(stage(name, out), log)[0] == 0
    prepare("fashion_mnist", tmp_path / "data", log=lambda line: None)
    before = contents(out)
    (tmp_path / "data/fashion_mnist/prepared/train-images.npy").chmod(0)
    (out / "encoder.safetensors").chmod(0)
    for command, word in (
        (stage("pretrain", out), ".lock: Permission denied: change its permissions"),
        (["report", out, "--out", tmp_path / "report"], "Permission denied: change its permissions"),
        (["verify", out, "--data-root", tmp_path / "none"], "encoder.safetensors: Permission denied"),
        (["verify", out, "--data-root", tmp_path / "data"], "train-images.npy: Permission denied"),
    ):
        status, output = run(command, log, uid=65534)
        counts["faults"] += 1
        assert status == 1, output
        assert word in output, output
        assert "Traceback" not in output
    assert contents(out) == before


@pytest.mark.parametrize(
    "name", ["result.json", "encoder.safetensors", "history.csv", "pretrain.json", ".lock", "checkpoints", ""]
)
def test_a_folder_in_place_of_a_file_or_the_reverse_is_one_message(
    name: str, tmp_path: Path, counts: Counter[str]
) -> None:
    out, log = tmp_path / SPEC.run, tmp_path / "log"
    wrong = out / name
    wrong.parent.mkdir(parents=True)
    if name in ("checkpoints", ""):
        wrong.write_text("a file")
    else:
        (wrong / "inside").mkdir(parents=True)
    outputs = [run(stage(command, out)[:-2], log) for command in ("pretrain", "evaluate")]
    counts["faults"] += 1
    failed = [output for status, output in outputs if status]
    assert failed
    assert all(status in (0, 1) for status, _ in outputs), outputs
    assert str(wrong) in failed[0], failed[0]
    assert re.search(r"stands where a \w+ is needed: move it away", failed[0]), failed[0]
    assert "Traceback" not in "".join(failed)
    wrong.rename(tmp_path / "moved")
    for command in ("pretrain", "evaluate"):
        status, output = run(stage(command, out), log)
        assert status == 0, output
