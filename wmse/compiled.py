"""Compilation of loops by numba, where it keeps what it has compiled, and threads to run it in.

On a CPU, operations on tensors stream every intermediate result through the caches; a loop takes an image or a few
samples through all operations while they are in the innermost one. So `wmse.views` and the linear probe have both: the
loops for CPUs, and the same arithmetic as operations on tensors for GPUs and as the reference in tests.

Importing this imports numba, which is slow; so the loops are imported where they are called.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import binding
from numba import njit

# The arithmetic of a loop: IEEE's to the letter; with fused multiplications and additions, as in MKL's products; with
# sums in whichever order the compiler finds fastest.
STRICT = {"error_model": "numpy", "nogil": True}
FUSED = {**STRICT, "fastmath": {"contract"}}
ANY_ORDER = {**STRICT, "fastmath": {"contract", "reassoc", "nsz"}}

PACKAGE = Path(__file__).parent
# The files that hold what is compiled.
SOURCE_FILES = ("compiled.py", "probes/linear_loops.py", "views/loops.py", "views/params.py")


def cache_folder() -> Path | None:
    """A folder of this user's for compiled code, None where there is none that can be written.

    One for each kind of CPU and version: jobs that start on different machines of a cluster at once would otherwise
    write different code into files of the same name. And one for each text of the sources: numba itself notices a
    change in the file of a function, but not in the files of those that it calls.
    """
    sources = zlib.crc32(b"".join((PACKAGE / name).read_bytes() for name in SOURCE_FILES))
    cpu = f"{binding.get_host_cpu_name()}-{zlib.crc32(binding.get_host_cpu_features().flatten().encode()):08x}"
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "wmse-repro" / f"numba-{numba.__version__}-{cpu}-{sources:08x}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except (OSError, RuntimeError):  # no such place, or no home
        return None
    # Compiled code that somebody else could have put there is not run.
    return folder if owner == os.getuid() and os.access(folder, os.W_OK) else None


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(cache_folder() or "")


def cached(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at its first call, or load what an earlier process compiled.

    A cache that cannot be written or read costs the compilation once more, never the run. numba replaces its files
    in one step, so that processes may compile at the same time.
    """
    in_memory = njit(**STRICT)(function)
    try:
        kernel = njit(cache=True, **STRICT)(function)
    except RuntimeError:  # numba finds no folder
        kernel = in_memory

    def call(*arguments: Any) -> None:
        try:
            kernel(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):  # a full disk, a damaged file
            in_memory(*arguments)

    return call


def in_threads(run: Callable[[int, int], None], n: int) -> None:
    """`run(start, stop)` on equal shares of range(n), by as many threads as torch uses, of which this is one.

    Not numba's own threads: which of its libraries for them is there, and safe, depends on the machine, and they double
    the time of the compilation.
    """
    threads = max(1, min(torch.get_num_threads(), n))
    bounds = [n * share // threads for share in range(threads + 1)]
    others = [_pool(os.getpid()).submit(run, *bounds[t : t + 2]) for t in range(1, threads)]
    run(*bounds[:2])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count())
