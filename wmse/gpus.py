"""Which of the visible GPUs a process computes on: Snakemake counts its jobs' GPUs, but does not say which is whose."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from wmse.errors import WmseError
from wmse.locks import take_lock

_claims: list[IO[str]] = []  # Open files, whose locks last as long as this process.


def claim_gpu(
    uuids: Sequence[str], slots: int = 1, say: Callable[[str], None] = print, folder: Path | None = None
) -> int:
    """The index of a GPU that fewer than `slots` other processes of this user hold, the least shared one first.

    `uuids` name the visible GPUs: numbers would not do, because processes that may use different ones (by
    CUDA_VISIBLE_DEVICES or a control group) all call theirs 0. While none is free, it waits, after one line to `say`.
    The kernel releases a claim when its process ends, however it ends.

    The only GPU of a Slurm job is its own, also while a predecessor is still ending there: it needs no claim.
    """
    if len(uuids) == 1 and "SLURM_JOB_ID" in os.environ:
        return 0
    said = False
    while True:
        for slot, (index, uuid) in itertools.product(range(slots), enumerate(uuids)):
            path = (folder or Path(tempfile.gettempdir())) / f"wmse-gpu-{os.getuid()}-{uuid}-{slot}.lock"
            try:
                _claims.append(take_lock(path, "wmse"))
                return index
            except WmseError as error:
                taken = error
        if not said:
            say(f"waiting for one of {len(uuids)} GPUs, which are all taken (gpu_slots lets runs share them): {taken}")
            said = True
        time.sleep(0.5)
