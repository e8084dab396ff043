"""What is made of the kernel's files: quotas and limits of both versions of control groups, and mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.raw import put
from wmse import machine
from wmse.machine import available_memory, cpu_quota, existing_parent, idle_cores, mount_of

GB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    put(tmp_path / "proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    return tmp_path / "proc"


def test_the_least_quota_counts_of_the_group_and_those_around_it(tmp_path: Path, proc: Path) -> None:
    put(proc / "self/cgroup", "0::/job/step\n")
    assert cpu_quota(proc, tmp_path / "cgroup") is None
    put(tmp_path / "cgroup/job/step/cpu.max", "max 100000\n")
    assert cpu_quota(proc, tmp_path / "cgroup") is None
    put(tmp_path / "cgroup/job/cpu.max", "150000 100000\n")
    put(tmp_path / "cgroup/cpu.max", "400000 100000\n")
    assert cpu_quota(proc, tmp_path / "cgroup") == 1.5


def test_quotas_of_the_first_version(tmp_path: Path, proc: Path) -> None:
    put(proc / "self/cgroup", "3:memory:/m\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    put(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")  # a container sees its own group as outermost
    put(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(proc, tmp_path / "cgroup") == 2
    put(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert cpu_quota(proc, tmp_path / "cgroup") is None


def test_memory_is_what_the_machine_has_left_or_the_limit_leaves(tmp_path: Path, proc: Path) -> None:
    put(proc / "self/cgroup", "4:memory:/job\n0::/job\n")
    assert available_memory(proc, tmp_path / "cgroup") == 8 * GB
    put(tmp_path / "cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712")  # none
    put(tmp_path / "cgroup/memory/job/memory.usage_in_bytes", str(7 * GB))
    assert available_memory(proc, tmp_path / "cgroup") == 8 * GB
    put(tmp_path / "cgroup/job/memory.max", str(4 * GB))
    put(tmp_path / "cgroup/job/memory.current", str(3 * GB))
    assert available_memory(proc, tmp_path / "cgroup") == GB
    put(tmp_path / "cgroup/job/memory.stat", f"anon 5\ninactive_file {GB}\n")
    assert available_memory(proc, tmp_path / "cgroup") == 2 * GB
    put(tmp_path / "cgroup/memory/job/memory.limit_in_bytes", str(6 * GB))
    assert available_memory(proc, tmp_path / "cgroup") == 0


def test_the_innermost_and_last_mount_counts(tmp_path: Path, proc: Path) -> None:
    inner = tmp_path / "my data"
    inner.mkdir()
    escaped = str(inner).replace(" ", r"\040")
    lines = [
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw",
        f"2 1 0:5 / {escaped} rw - nfs4 host:/x rw,nolock",
        f"3 1 0:6 / {escaped} rw - tmpfs tmpfs rw,size=9k",
        f"4 1 0:7 / {escaped}-not rw - overlay overlay rw",
        "damaged",
    ]
    put(proc / "self/mountinfo", "\n".join(lines) + "\n")
    assert mount_of(tmp_path, proc) == (Path("/"), "ext4", ("rw", "relatime", "rw"))
    assert mount_of(inner / "not/yet", proc) == (inner, "tmpfs", ("rw", "rw", "size=9k"))
    assert mount_of(inner, tmp_path).kind == "unknown"


def test_the_folder_around_what_is_not_there(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a/b") == existing_parent(tmp_path) == tmp_path
    assert mount_of(tmp_path).point.is_mount()


def test_cores_are_idle_as_far_as_the_kernel_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of cores 0 and 2, one is half idle and one waits for a disk; core 1 is not asked for."""
    row = "cpu{} 5 0 5 {} {} 0 0 0 0 0\n"
    before = "cpu  9 9 9 9 9 9 9 9 9 9\n" + "".join(row.format(core, 1000, 50) for core in range(3))
    after = before.replace("cpu0 5 0 5 1000 50", "cpu0 5 0 5 1050 50").replace(
        "cpu2 5 0 5 1000 50", "cpu2 5 0 5 1000 150"
    )
    put(tmp_path / "stat", before)
    clock = iter([10.0, 11.0])
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: put(tmp_path / "stat", after))
    assert idle_cores({0, 2}, proc=tmp_path) == 1.5


def test_all_cores_are_idle_where_the_kernel_does_not_count(tmp_path: Path) -> None:
    assert idle_cores({0, 1, 2}, 0.0, tmp_path) == 3
