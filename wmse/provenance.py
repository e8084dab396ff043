"""Where a number comes from: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import wmse
from wmse.config import plugins

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "snakemake")


def commit() -> tuple[str | None, bool | None]:
    """The source's git commit and whether the tree has changes; from WMSE_COMMIT where there is no repository.

    An image without the repository carries the commit in that variable.
    """
    root = Path(wmse.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    if (root / ".git").exists():
        try:
            return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            pass
    return os.environ.get("WMSE_COMMIT") or None, None


def provenance(runtime: dict[str, Any]) -> dict[str, Any]:
    """The block `provenance` of a result file."""
    revision, dirty = commit()
    return {
        "commit": revision,
        "dirty": dirty,
        "versions": {
            "python": platform.python_version(),
            "wmse": wmse.__version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "hardware": hardware(runtime),
        "runtime": runtime,
        **({"plugins": sources} if (sources := {p.name: f"sha256:{p.digest}" for p in plugins().values()}) else {}),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware(runtime: dict[str, Any]) -> dict[str, Any]:
    """The processor, the cores that this process may use, and the GPU if it runs there."""
    return {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpu": _gpu_name(runtime)}


def cpu_name() -> str:
    """The processor's model, as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu_name(runtime: dict[str, Any]) -> str | None:
    if not str(runtime.get("device", "")).startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name()


def peak_memory_bytes(device_type: str) -> int:
    """Largest memory so far: allocated on the GPU, or resident in the process."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
