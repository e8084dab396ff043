"""One run on several processes, each with a GPU or a share of the cores: the same run, divided.

`World` is what a training asks of the others; one process is a world of its own, in which every question is answered at
once. `wmse.distributed.launch` starts the processes of one host; torchrun can do so on several.
"""

from wmse.distributed.world import ALONE, World, join, started_by_launcher

__all__ = ["ALONE", "World", "join", "started_by_launcher"]
