"""Random streams without state: every random decision of a run is a function of (seed, what for, when).

Data order, views, slicing and initial weights each have a stream of their own, indexed by epoch or step. Nothing that
ran before can change them, threads cannot reorder them, and a resumed run needs no more than its step number.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """63 bits that depend on all arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{'/'.join(map(str, index))}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one moment, e.g. ``stream(seed, "views", step, view)``."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))
