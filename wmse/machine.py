"""What the kernel says about this machine: limits of the control group, memory, and the file system of a folder."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # Control groups of version 1 write a number of about this size where there is no limit.
ESCAPED = re.compile(r"\\([0-7]{3})")  # A space or the like in a path of mountinfo.


class Mount(NamedTuple):
    """A mounted file system: its kind, such as ext4 or nfs4, and all options of it."""

    point: Path
    kind: str
    options: tuple[str, ...]


def existing_parent(path: Path) -> Path:
    """The folder itself, or the innermost one around it that is there."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def mount_of(path: Path, proc: Path = PROC) -> Mount:
    """The mount that a folder lies in, or would lie in."""
    place = existing_parent(path).resolve()
    around = (place, *place.parents)
    found = [mount for mount in _mounts(proc / "self/mountinfo") if mount.point in around]
    if not found:
        return Mount(Path("/"), "unknown", ())
    # Of several on the same folder the last one hides the others.
    return max(reversed(found), key=lambda mount: len(mount.point.parts))


def _mounts(file: Path) -> Iterator[Mount]:
    for line in _text(file).splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) > 5 and len(rest) > 2:
            point = ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
            yield Mount(Path(point), rest[0], (*fields[5].split(","), *rest[2].split(",")))


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """How many cores' time the control group allows, None for all."""
    shares = []
    for folder in _groups("cpu", proc, cgroup):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words):  # not "max" or "-1"
            shares.append(int(words[0]) / int(words[1]))
    return min(shares, default=None)


def idle_cores(cores: Collection[int], seconds: float = 0.2, proc: Path = PROC) -> float:
    """How many of these cores nobody uses while this process waits so long; all where the kernel does not say."""
    before, started = _idle_seconds(cores, proc), time.monotonic()
    time.sleep(seconds)
    idle = (_idle_seconds(cores, proc) - before) / (time.monotonic() - started)
    return min(idle, len(cores)) if before else len(cores)


def _idle_seconds(cores: Collection[int], proc: Path) -> float:
    """Seconds that the cores have had nothing to do, together, since the machine was started."""
    rows = re.findall(
        r"^cpu(\d+) \d+ \d+ \d+ (\d+) (\d+)", _text(proc / "stat"), re.MULTILINE
    )  # idle, waiting for disks
    return sum(int(idle) + int(waiting) for core, idle, waiting in rows if int(core) in cores) / os.sysconf(
        "SC_CLK_TCK"
    )


def available_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that a process can still take: of the machine, and below the limit of the control group."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    rooms = [int(match[1]) * 1024] if match else []
    for folder in _groups("memory", proc, cgroup):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdecimal() and now.isdecimal() and int(most) < UNLIMITED:
                files = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
                rooms.append(int(most) - int(now) + (int(files[1]) if files else 0))  # which the kernel gives back
    return max(min(rooms, default=math.inf), 0)


def _groups(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """The folders of this process's control groups and those around them, of both versions.

    Inside a container the path may be that of the host; then only the outermost folder, the container's own, exists.
    """
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = cgroup / controllers if controllers else cgroup
        inner = base / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base) and folder.is_dir())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
