"""What is slow or wrong with this machine for the runs of a configuration, and what to do about it (`wmse doctor`)."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wmse.config import Project, RunSpec
from wmse.datasets import SOURCES, plan_folders
from wmse.estimate.disk import data_bytes, runs_bytes
from wmse.estimate.plan import feature_count, image_counts
from wmse.gpu_driver import Driver, Torch, read_driver, read_torch, supports
from wmse.images import AHEAD
from wmse.locks import exclusive_lock
from wmse.machine import available_memory, cpu_quota, existing_parent, mount_of
from wmse.probes.neighbours import CHUNK
from wmse.runs.state import look_at_runs
from wmse.runtime import BF16_FLAGS, cpu_has_bf16
from wmse.selfcheck import run_checks

LEVELS = ("ok", "slow", "wrong")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p")
IN_MEMORY = ("tmpfs", "ramfs")
NCCL_MEMORY = 1 << 30  # Bytes of /dev/shm that NVIDIA's container guide gives NCCL (--shm-size=1g).
AMPERE = (8, 0)  # The first compute capability with bf16 arithmetic.


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `level` is one of LEVELS, `advice` what to do unless it is ok."""

    what: str
    level: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level.ljust(6)} {self.what}: {self.text}" + (f": {self.advice}" if self.advice else "")


def examine(project: Project, results: Path, data_root: Path) -> list[Finding]:
    """Everything that is looked at, in this order; what cannot be looked at is wrong, and the rest goes on."""
    driver = read_driver()  # before this process itself is one of those on the GPU
    plan_folders(project.folders.values(), data_root)
    wanted = project.settings["device"]
    seen = read_torch()
    on_gpu = seen.available and wanted != "cpu"
    cores = len(os.sched_getaffinity(0))
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "installation": lambda: installation(results, data_root),
        "threads": lambda: threads(cores, cpu_quota(), project.settings["threads"], os.environ),
        "load": lambda: load_average(os.getloadavg()[0], os.cpu_count() or 1, runs_at_work(project.runs, results)),
        "precision": lambda: precision(project.runs, seen if on_gpu else None),
        "GPU": lambda: gpu(driver, seen, wanted, os.environ),
        "data": lambda: file_system("data", data_root, any(SOURCES[name].streamed for name in project.benchmarks)),
        "results": lambda: file_system("results", results),
        "disk": lambda: disk(project, results, data_root),
        "/dev/shm": lambda: shared_memory(max(map(project.processes, project.runs)), on_gpu),
        "memory": lambda: memory(project.runs, data_root, seen.memory if on_gpu else None, available_memory()),
        "compiled code": lambda: compiled_code(project.settings["compile"] is True),
    }
    findings = []
    for what, part in parts.items():
        try:
            findings += part()
        except Exception as error:  # whatever is broken, the rest is still of use
            findings.append(Finding(what, "wrong", f"cannot be examined ({type(error).__name__}: {error})"))
    return findings


def summarize(findings: Sequence[Finding]) -> str:
    """`9 ok, 1 slow, 1 wrong`."""
    counts = Counter(finding.level for finding in findings)
    return ", ".join(f"{counts[level]} {level}" for level in LEVELS if counts[level])


def installation(results: Path, data_root: Path) -> Iterator[Finding]:
    """What `wmse selfcheck` finds."""
    checks = list(run_checks(results, data_root))
    for check in checks:
        if not check.passed:
            yield Finding(f"installation, {check.name}", "wrong", check.text, "`wmse selfcheck` repeats this test")
    passed = [check.name for check in checks if check.passed]
    yield Finding("installation", "ok", f"{len(passed)} of {len(checks)} self-checks passed ({', '.join(passed)})")


# --- arithmetic -------------------------------------------------------------------------------------------------------


def threads(
    cores: int, quota: float | None, setting: int | str, environment: Mapping[str, str], used: int | None = None
) -> Iterator[Finding]:
    """How many threads a run has, against the cores that it may use and the quota of the control group.

    `used` is what a command takes without --threads; None asks torch.
    """
    used = torch.get_num_threads() if used is None else used
    usable = cores if quota is None else min(cores, quota)
    text = f"{cores} cores" + ("" if quota is None else f", of which a quota allows the time of {quota:g}")
    if setting != "auto":
        text, used = f"{text}; `threads: {setting}`", setting
    else:
        text += f"; a command takes {used} threads, and Snakemake shares the cores among its jobs"
    variable = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if environment.get(name)), "")
    whole = max(1, int(usable))
    if used > usable and used > 1:
        advice = f"give --threads {whole} and `snakemake --cores {whole}`, or set `threads: {whole}` in config.yaml"
        yield Finding("threads", "slow", f"{text}: more threads than cores wait for each other", advice)
    elif setting == "auto" and variable and used < whole:
        advice = f"unset it, or give --threads {whole}"
        yield Finding("threads", "slow", f"{text}, because {variable}={environment[variable]}", advice)
    else:
        yield Finding("threads", "ok", text)


def runs_at_work(runs: Sequence[RunSpec], results: Path) -> list[str]:
    """The runs of the configuration that somebody is computing now."""
    return [state.run for state in look_at_runs(runs, results) if state.state in ("training", "evaluating")]


def load_average(load: float, cpus: int, at_work: Sequence[str]) -> Iterator[Finding]:
    """What else is being computed: `load` is the mean number of busy threads on the machine's `cpus`."""
    text = f"{load:.1f} threads were busy on {cpus} cores in the last minute"
    if at_work:
        text += f"; of this configuration are being computed: {', '.join(at_work)}"
    if load > cpus / 2:
        advice = (
            "what is started now shares the cores with that: with several threads, which wait for each other, it may "
            "be many times slower than with fewer, and times of `wmse estimate` come out too long"
        )
        yield Finding("load", "slow", text, advice)
    else:
        yield Finding("load", "ok", text)


def precision(runs: Sequence[RunSpec], seen: Torch | None) -> Iterator[Finding]:
    """What `precision: auto` stands for and why; `seen` is None where runs are computed on the CPU."""
    if seen is None:
        place, native = "CPU", cpu_has_bf16()
        auto = native
        why = f"the CPU has {'one' if native else 'none'} of {' and '.join(BF16_FLAGS)}"
    else:
        place, native = "GPU", all(device.capability >= AMPERE for device in seen.devices)
        auto = seen.bf16
        why = f"the GPU has {'' if native else 'no '}bf16 arithmetic"
    text = f"`precision: auto` is {'bf16' if auto else 'fp32'}: {why}"
    emulated = [spec.name for spec in runs if spec.precision == "bf16" or (spec.precision == "auto" and auto)]
    if emulated and not native:
        advice = "set `precision: fp32` under `parameters` in config.yaml (which makes other runs)"
        yield Finding("precision", "slow", f"{text}, but {len(emulated)} runs use bf16, which is emulated", advice)
    else:
        yield Finding("precision", "ok", text + ("" if native else f"; emulated on this {place} it would be slower"))


# --- GPU --------------------------------------------------------------------------------------------------------------


def gpu(driver: Driver | None, seen: Torch, wanted: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the GPUs of the driver are those that torch computes on; `wanted` is the key `device`."""
    there = len(driver.gpus) if driver else 0
    if not seen.available:
        yield _unused(driver if there else None, seen, wanted, environment)
        return
    if wanted == "cpu":
        yield Finding("GPU", "ok", f"{len(seen.devices)} there, not used: `device: cpu`")
        return
    version = f", driver {driver.version}" if driver else ""
    names = Counter(device.name for device in seen.devices)
    listed = ", ".join(f"{count} x {name}" for name, count in names.items())
    yield Finding("GPU", "ok", f"{listed} of {max(there, len(seen.devices))} (CUDA {seen.cuda}{version})")
    for number, device in enumerate(seen.devices):
        if not supports(seen.architectures, device.capability):
            text = f"{device.name} has compute capability {'.'.join(map(str, device.capability))}, for which torch "
            text += f"{torch.__version__} was not built ({', '.join(seen.architectures)})"
            advice = "install a torch that was, or set `device: cpu`"
            yield Finding(f"GPU {number}", "wrong", text, advice)
        on_it = driver.gpus.get(device.uuid) if driver else None
        if on_it and on_it.processes:
            text = f"{on_it.processes} processes are on it already, and {on_it.used / 1e9:.1f} of "
            text += f"{on_it.total / 1e9:.1f} GB of its memory are taken"
            advice = "wait for them (`nvidia-smi` names them), or choose another GPU by CUDA_VISIBLE_DEVICES"
            yield Finding(f"GPU {number}", "slow", text, advice)


def _unused(driver: Driver | None, seen: Torch, wanted: str, environment: Mapping[str, str]) -> Finding:
    """Why torch computes on none; `driver` is None where it knows none either."""
    if driver is None:
        if wanted != "cuda":
            return Finding("GPU", "ok", "none: runs are computed on the CPU")
        advice = "install NVIDIA's driver, give a container --gpus all or --nv, or set `device: auto`"
        return Finding("GPU", "wrong", "`device: cuda`, but the driver knows none", advice)
    text = f"the driver {driver.version} has {len(driver.gpus)}, of which torch {torch.__version__} sees none"
    if wanted == "cpu":
        return Finding("GPU", "ok", f"{len(driver.gpus)} there, not used: `device: cpu`")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip("-1, "):
        level = "wrong" if wanted == "cuda" else "slow"
        return Finding("GPU", level, f"{text}, because CUDA_VISIBLE_DEVICES={visible!r}", "unset the variable")
    if seen.cuda is None:
        advice = "install the wheel of PyPI (`pip install --force-reinstall torch`), or set `device: cpu`"
        return Finding("GPU", "wrong", f"{text}: it was built without CUDA", advice)
    if driver.cuda < int(seen.cuda.partition(".")[0]):
        text = f"{text}: it needs CUDA {seen.cuda}, and the driver is for CUDA {driver.cuda} at most"
        advice = f"update the driver, install a torch for CUDA {driver.cuda}, or set `device: cpu`"
        return Finding("GPU", "wrong", text, advice)
    advice = "`python -c 'import torch; torch.cuda.init()'` says why; give a container --gpus all or --nv"
    return Finding("GPU", "wrong", text, advice)


# --- files and memory -------------------------------------------------------------------------------------------------


def file_system(what: str, folder: Path, streamed: bool = False) -> Iterator[Finding]:
    """What `folder` lies on, and whether locks work there; `streamed`: single images are read from it."""
    mount = mount_of(folder)
    text = f"{folder} is on {mount.kind} ({mount.point})"
    place = existing_parent(folder)
    try:
        with exclusive_lock(place / f".wmse-doctor-{os.getpid()}", "wmse doctor"):
            pass
    except OSError as error:
        advice = "choose a folder where a file can be written and locked (`data_root`, `results` in config.yaml)"
        yield Finding(what, "wrong", f"{text}, where no lock can be taken ({error.strerror})", advice)
        return
    finally:
        (place / f".wmse-doctor-{os.getpid()}").unlink(missing_ok=True)
    if mount.kind in NETWORK or mount.kind.startswith("fuse."):
        advice = "every file costs a round trip"
        if streamed:
            advice += ": pack the images (`wmse prepare BENCHMARK --pack`), or put them on a local disk (`data_root`)"
        else:
            advice += "; where jobs wait for it, put the folder on a local disk"
        if {"nolock", "local_lock=all", "local_lock=posix"} & set(mount.options):
            advice += ". It is mounted so that other hosts do not see locks: compute these runs on this host alone"
        yield Finding(what, "slow", f"{text}, a network file system", advice)
    elif mount.kind in IN_MEMORY:
        advice = "its files take memory from the runs and are gone after a restart: choose a folder on a disk"
        yield Finding(what, "slow", f"{text}, which is memory", advice)
    elif mount.kind == "overlay":
        advice = "it is slower, and gone with the container: mount a folder of the host there (docs/containers.md)"
        yield Finding(what, "slow", f"{text}, a layer of the container", advice)
    else:
        yield Finding(what, "ok", text)


def disk(project: Project, results: Path, data_root: Path) -> Iterator[Finding]:
    """What the configuration still needs against what is free, together where data and results share a disk."""
    needs = {data_root: data_bytes(project.benchmarks, data_root), results: runs_bytes(project, results)}
    places: dict[int, list[Path]] = {}
    for folder in needs:
        places.setdefault(existing_parent(folder).stat().st_dev, []).append(folder)
    for folders in places.values():
        free = shutil.disk_usage(existing_parent(folders[0])).free
        needed = sum(needs[folder] for folder in folders)
        parts = " and ".join(f"{needs[folder] / 1e9:.2f} GB in {folder}" for folder in folders)
        text = f"the preset {project.settings['preset']} still needs {parts}; {free / 1e9:.1f} GB are free"
        if needed > free:
            advice = "free some, or choose other folders (`data_root`, `results`) or fewer runs in config.yaml"
            yield Finding("disk", "wrong", text, advice)
        else:
            yield Finding("disk", "ok", text)


def shared_memory(processes: int, on_gpu: bool, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """The memory through which the processes of one run exchange data; most runs have one process, and need none."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    text = f"{free / 1e9:.2f} GB are free"
    if processes == 1 or not on_gpu:
        yield Finding("/dev/shm", "ok", f"{text}; no run needs any")
    elif free < NCCL_MEMORY:
        advice = "give the container --shm-size=1g or --ipc=host"
        yield Finding("/dev/shm", "slow", f"{text}; runs of {processes} processes exchange gradients there", advice)
    else:
        yield Finding("/dev/shm", "ok", text)


def memory(runs: Sequence[RunSpec], data_root: Path, on_gpu: int | None, available: int) -> Iterator[Finding]:
    """The memory that the largest evaluation needs, against that of the GPU (`on_gpu` bytes) or of the machine.

    What a training step needs of a GPU says `wmse estimate --memory`.
    """
    needs = {spec: evaluation_bytes(spec, image_counts(spec.probed, data_root)) for spec in runs}
    spec = max(needs, key=needs.__getitem__)
    room, place = (available, "available") if on_gpu is None else (on_gpu, "on the GPU")
    ahead = AHEAD if any(SOURCES[name].streamed for run in runs for name in (run.benchmark, run.probed)) else 0
    text = f"the largest evaluation, {spec.name}, holds {needs[spec] / 1e9:.2f} GB; {room / 1e9:.1f} GB are {place}"
    too_large = [spec.name for spec, size in needs.items() if size > room]
    if too_large:
        advice = f"leave out {', '.join(too_large)} (`methods` or `benchmarks` in config.yaml), or use a larger machine"
        yield Finding("memory", "wrong", text, advice)
    elif ahead > available:
        text = f"decoding ahead takes up to {ahead / 1e9:.1f} GB; {available / 1e9:.1f} GB are available"
        yield Finding("memory", "wrong", text, "end other programs, or raise the limit of the container or job")
    else:
        yield Finding("memory", "ok", text + (f"; decoding ahead takes up to {ahead / 1e9:.1f} GB" if ahead else ""))


def evaluation_bytes(spec: RunSpec, counts: Mapping[str, int]) -> int:
    """Features of all images, a copy of those for training, and the distances of a chunk, in float32."""
    if "test" not in counts:
        return 0
    train, test = counts["train"], counts["test"]
    return 4 * ((2 * train + test) * feature_count(spec) + CHUNK * train)


def compiled_code(compiles: bool, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Where compiled loops are kept, and whether `compile: true` finds a compiler."""
    from wmse import compiled  # imports numba

    folder = compiled.numba.config.CACHE_DIR
    if folder and os.access(existing_parent(Path(folder)), os.W_OK):
        yield Finding("compiled code", "ok", f"kept in {folder}")
    else:
        text = f"{folder} cannot be written" if folder else "no cache folder of this user's can be written"
        text += ", so that every process compiles its loops again"
        yield Finding("compiled code", "slow", text, "set XDG_CACHE_HOME to a folder of your own that can be written")
    programs: Any = (environment.get("CXX"), "g++", "clang++")
    if compiles and not any(program and shutil.which(program) for program in programs):
        yield Finding("compiler", "wrong", "`compile: true`, but there is none", "install g++, or set `compile: false`")
