"""`wmse doctor`: what it calls slow or wrong, on machines that are described to it, and what it advises."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from builders.runs import TINY, tiny_spec
from wmse import doctor
from wmse.cli import main
from wmse.config import load_project
from wmse.doctor import Finding
from wmse.gpu_driver import Device, Driver, Gpu, Torch
from wmse.locks import exclusive_lock
from wmse.machine import Mount
from wmse.runs.folder import RunFolder

CONFIG = {
    "experiments": [{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2", "pixels"]}],
    "parameters": {"*": TINY},
}
H100, V100 = Device("H100", "a", (9, 0)), Device("V100", "b", (7, 0))
SEES = Torch(True, "12.8", ("sm_80", "sm_90"), (H100,), 80 << 30, True)
BLIND = Torch(False, "12.8")


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Iterable[Finding], level: str, *words: str) -> None:
    """There is one finding, of this level, which says all of these words; unless it is ok, it advises something."""
    (finding,) = findings
    assert finding.level == level, finding
    assert [word for word in words if word not in str(finding)] == [], finding
    assert bool(finding.advice) == (level != "ok")


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_working_machine_is_told_to_be_so_and_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "device": "cpu"}))
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "slow"}
    for what in ("installation", "threads", "load", "precision", "data", "results", "disk", "memory", "compiled code"):
        assert any(f" {what}: " in line for line in lines), what
    assert any(f"GB in {tmp_path}/data and " in line for line in lines)
    assert lines[-1].endswith("slow") or lines[-1].endswith("ok")
    assert main(["doctor", "--root", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["preset"] == "quick"
    assert [finding["what"] for finding in content["findings"]] == [line.split(":")[0][7:] for line in lines[:-1]]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_is_wrong_makes_it_fail_and_the_rest_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no idea")

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setattr(doctor, "threads", broken)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "wrong  threads: cannot be examined (RuntimeError: no idea)\n" in printed.out
    assert "wrong  disk: the preset quick still needs" in printed.out
    assert "ok     compiled code" in printed.out or "slow   compiled code" in printed.out
    assert "2 wrong: follow the advice above, then run `wmse doctor` again" in printed.err


def test_a_failed_self_check_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmse.datasets.build.file_digest", lambda path, algorithm: "0" * 64)
    found = list(doctor.installation(tmp_path, tmp_path))
    assert levels(found) == ["wrong", "ok"]
    assert "embedded data" in found[0].what
    assert "of" in found[1].text


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_threads_are_as_many_as_cores_and_quota() -> None:
    only(doctor.threads(8, None, "auto", {}, 8), "ok", "8 cores")
    only(doctor.threads(8, None, "auto", {}, 4), "ok")  # torch takes no hyperthreads
    only(doctor.threads(8, 2.5, "auto", {}, 8), "slow", "2.5", "--threads 2", "--cores 2")
    only(doctor.threads(1, 0.5, "auto", {}, 1), "ok")
    only(doctor.threads(8, None, 16, {}, 8), "slow", "threads: 16", "threads: 8")
    only(doctor.threads(8, None, 2, {"OMP_NUM_THREADS": "1"}, 1), "ok", "threads: 2")
    only(doctor.threads(8, None, "auto", {"OMP_NUM_THREADS": "1"}, 1), "slow", "OMP_NUM_THREADS=1", "--threads 8")
    only(doctor.threads(8, None, "auto", {"OMP_NUM_THREADS": "16"}, 16), "slow")


def test_a_busy_machine_is_slow_and_runs_at_work_are_named(tmp_path: Path) -> None:
    spec = tiny_spec()
    assert doctor.runs_at_work([spec], tmp_path) == []
    with exclusive_lock(RunFolder.of(tmp_path, spec.run).lock, "wmse pretrain"):
        assert doctor.runs_at_work([spec], tmp_path) == [spec.run]
    only(doctor.load_average(1.0, 8, [spec.run]), "ok", "1.0", spec.run)
    only(doctor.load_average(5.0, 8, []), "slow", "5.0", "8 cores")


def test_what_auto_precision_is_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, bf16 = tiny_spec(precision="auto"), tiny_spec(precision="bf16")
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: False)
    only(doctor.precision([auto], None), "ok", "fp32", "none of avx512_bf16 and amx_bf16", "slower")
    only(doctor.precision([auto, bf16], None), "slow", "1 runs use bf16", "precision: fp32")
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: True)
    only(doctor.precision([auto, bf16], None), "ok", "`precision: auto` is bf16: the CPU has one of")
    only(doctor.precision([auto], SEES), "ok", "`precision: auto` is bf16")
    only(doctor.precision([auto], SEES._replace(devices=(V100,))), "slow", "1 runs use bf16", "emulated")
    only(doctor.precision([tiny_spec()], SEES._replace(devices=(V100,))), "ok", "GPU")  # fp32


# --- GPU --------------------------------------------------------------------------------------------------------------


DRIVER = Driver("550.54", 12, {"a": Gpu(0, 1 << 30, 80 << 30)})


def test_a_gpu_that_torch_uses() -> None:
    only(doctor.gpu(DRIVER, SEES, "auto", {}), "ok", "1 x H100 of 1", "12.8", "550.54")
    only(doctor.gpu(DRIVER, SEES, "cpu", {}), "ok", "not used")
    only(doctor.gpu(None, SEES, "cuda", {}), "ok", "1 x H100 of 1")
    shared = Driver("550.54", 12, {"a": Gpu(2, 30 << 30, 80 << 30)})
    found = list(doctor.gpu(shared, SEES, "auto", {}))
    assert levels(found) == ["ok", "slow"]
    assert "2 processes" in found[1].text
    assert "32.2 of 85.9 GB" in found[1].text
    found = list(doctor.gpu(DRIVER, SEES._replace(devices=(H100, V100)), "auto", {}))
    assert [(finding.what, finding.level) for finding in found] == [("GPU", "ok"), ("GPU 1", "wrong")]
    assert "compute capability 7.0" in found[1].text


def test_without_a_gpu_only_who_asks_for_one_is_wrong() -> None:
    only(doctor.gpu(None, BLIND, "auto", {}), "ok", "none")
    only(doctor.gpu(None, BLIND, "cuda", {}), "wrong", "device: cuda", "device: auto")


@pytest.mark.parametrize(
    ("driver", "seen", "environment", "level", "words"),
    [
        (DRIVER, BLIND, {"CUDA_VISIBLE_DEVICES": ""}, "slow", ["CUDA_VISIBLE_DEVICES=''"]),
        (DRIVER, BLIND, {"CUDA_VISIBLE_DEVICES": "-1"}, "slow", ["unset"]),
        (DRIVER, Torch(False, None), {}, "wrong", ["without CUDA", "pip install"]),
        (Driver("470.1", 11, DRIVER.gpus), BLIND, {}, "wrong", ["CUDA 12.8", "CUDA 11 at most", "update the driver"]),
        (DRIVER, BLIND, {"CUDA_VISIBLE_DEVICES": "0"}, "wrong", ["torch.cuda.init()"]),
    ],
)
def test_a_gpu_that_torch_does_not_see(
    driver: Driver, seen: Torch, environment: dict[str, str], level: str, words: list[str]
) -> None:
    only(doctor.gpu(driver, seen, "auto", environment), level, *words)
    only(doctor.gpu(driver, seen, "cpu", environment), "ok", "not used")
    assert levels(doctor.gpu(driver, seen, "cuda", environment)) == ["wrong"]


# --- files and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "streamed", "level", "words"),
    [
        ("ext4", (), True, "ok", ["ext4"]),
        ("nfs4", (), True, "slow", ["--pack"]),
        ("nfs", ("rw", "nolock"), False, "slow", ["local disk", "this host alone"]),
        ("fuse.sshfs", (), False, "slow", ["network"]),
        ("tmpfs", (), False, "slow", ["memory"]),
        ("overlay", (), False, "slow", ["container"]),
    ],
)
def test_file_systems(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: tuple[str, ...],
    streamed: bool,
    level: str,
    words: list[str],
) -> None:
    monkeypatch.setattr(doctor, "mount_of", lambda path: Mount(Path("/mnt"), kind, options))
    only(doctor.file_system("data", tmp_path / "new", streamed), level, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_locks_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("wmse.locks.fcntl.fcntl", refuse)
    only(doctor.file_system("results", tmp_path), "wrong", "No locks available", "results")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_is_asked_once_for_all_that_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = load_project(CONFIG)
    data, results = 10_000_000, 5_000_000
    monkeypatch.setattr(doctor, "data_bytes", lambda benchmarks, folder: data)
    monkeypatch.setattr(doctor, "runs_bytes", lambda project, folder: results)
    for free, level in ((data + results - 1, "wrong"), (data + results, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        only(doctor.disk(project, tmp_path / "r", tmp_path / "d"), level, "0.01 GB in")


def test_shared_memory_matters_to_processes_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))  # Docker's default
    only(doctor.shared_memory(1, True, tmp_path), "ok", "0.07 GB")
    only(doctor.shared_memory(4, False, tmp_path), "ok")
    only(doctor.shared_memory(4, True, tmp_path), "slow", "--shm-size=1g")
    only(doctor.shared_memory(4, True, tmp_path / "missing"), "slow", "0.00 GB")


def test_the_largest_evaluation_must_fit(tmp_path: Path) -> None:
    runs = load_project({**CONFIG, "parameters": {}, "preset": "paper"}).runs
    needed = 4 * (22_000 * 3 * 32 * 32 + 256 * 10_000)
    assert doctor.evaluation_bytes(runs[1], {"train": 10_000, "test": 2_000}) == needed
    only(doctor.memory(runs, tmp_path, None, needed), "ok", "fashion_mnist/pixels/seed0")
    only(doctor.memory(runs, tmp_path, None, needed - 1), "wrong", "leave out fashion_mnist/pixels/seed0")
    only(doctor.memory(runs, tmp_path, needed, 0), "ok", "on the GPU")
    only(doctor.memory(runs, tmp_path, needed - 1, 2 * needed), "wrong", "on the GPU")
    streamed = [tiny_spec(benchmark="imagenet_mini")]
    only(doctor.memory(streamed, tmp_path, None, 3 << 30), "ok", "decoding ahead takes up to 2.1 GB")
    only(doctor.memory(streamed, tmp_path, None, 1 << 30), "wrong", "decoding ahead")
    assert doctor.evaluation_bytes(streamed[0], {"pretrain": 10}) == 0


def test_where_compiled_code_is_kept_and_what_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmse.compiled.numba.config.CACHE_DIR", str(tmp_path / "new"))
    only(doctor.compiled_code(False), "ok", str(tmp_path))
    monkeypatch.setattr("wmse.compiled.numba.config.CACHE_DIR", "")
    only(doctor.compiled_code(False), "slow", "XDG_CACHE_HOME")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert levels(doctor.compiled_code(True, {})) == ["slow", "wrong"]
    monkeypatch.setattr(shutil, "which", lambda program: program if program == "my-c++" else None)
    assert levels(doctor.compiled_code(True, {"CXX": "my-c++"})) == ["slow"]
