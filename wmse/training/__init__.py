"""Pretraining: the loop, what watches over it, its history and its checkpoints.

Everything random comes from streams indexed by epoch or step (`wmse.streams`), so the position in the run is one
number, the step, and a resumed run computes what a straight run computes, bit for bit on the CPU.
"""

from wmse.runs.job import CheckpointPolicy, Job
from wmse.training.loop import Trainer, pretrain
from wmse.training.signals import Stopped

__all__ = ["CheckpointPolicy", "Job", "Stopped", "Trainer", "pretrain"]
