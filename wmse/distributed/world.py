"""The processes of one run: how they share work, agree, and combine tensors (torch.distributed)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from wmse.distributed.batch_norm import synchronize_batch_norm
from wmse.errors import LOST_EXIT, WmseError
from wmse.whitening import at_least_float32

OURS = "wmse"  # The TORCHELASTIC_RUN_ID of processes that `wmse.distributed.launch` has started.
GONE = "has died, or cannot be reached: the same command continues from the last checkpoint"
T = TypeVar("T")
CPU = torch.device("cpu")
REPORTED = timedelta(seconds=10)  # How long a process waits for the one that prints the message of them all.
# Its name since torch 2.15, or the one before: whether every forward pass copies the buffers of the first process.
NEW_NAME = "forward_sync_buffers"
SYNC_BUFFERS = NEW_NAME if NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers"
PR_SET_PDEATHSIG = 1  # Of Linux's prctl.


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees them; by default it is the only one.

    Everything but `part`, `describe` and `report` is collective: all processes call it, in the same order. Where there
    is one process alone, it is the identity. Flags and objects travel between the hosts by gloo, tensors on a GPU by
    NCCL.

    Attributes:
        local_size: processes on this host.
        store: the key-value store through which they met; None for a process alone.
        backend: what moves the tensors of the training.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    store: dist.Store | None = None
    backend: str | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values, for the records of the run; hosts are counted as torchrun starts them, with equally many."""
        return {"processes": self.size, "nodes": self.size // self.local_size, "backend": self.backend}

    # --- shares -------------------------------------------------------------------------------------------------------

    def part(self, n: int) -> slice:
        """This process's share of n things in order; shares differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def whole(self, part: Tensor, n: int) -> Tensor:
        """(n, ...) in every process, from the rows `part(n)` of each; without gradient."""
        if self.store is None:
            return part
        longest = -(-n // self.size)
        padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        parts = self.each(padded)
        lengths = [n * (rank + 1) // self.size - n * rank // self.size for rank in range(self.size)]
        return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])

    # --- tensors ------------------------------------------------------------------------------------------------------

    def each(self, x: Tensor) -> Tensor:
        """(processes, *x.shape): what every process has as `x`, all of one shape; without gradient."""
        if self.store is None:
            return x[None]
        gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(gathered, x.contiguous())
        return torch.stack(gathered)

    def gather(self, embeddings: Tensor) -> Tensor:
        """(d, N, k) in every process, from the equal parts (d, N / processes, k); at least float32.

        Its gradient is the sum of those of all processes. So if each computes the same loss of all embeddings, and the
        gradients of the parameters are averaged over the processes afterwards, they are those of one process.
        """
        if self.store is None:
            return embeddings
        return _Gather.apply(at_least_float32(embeddings), self)

    def mean(self, x: Tensor | float) -> Tensor | float:
        """The mean of a scalar over the processes, in float64; that of a process alone is `x` itself."""
        if self.store is None:
            return x
        total = torch.as_tensor(x, dtype=torch.float64).clone()
        dist.all_reduce(total)
        return total / self.size

    def parallel(self, method: nn.Module) -> nn.Module:
        """What to call instead of `method`: its gradients become means over the processes while they are computed.

        Its batch norms take their statistics over the images of all processes. Its names and its state stay.
        """
        if self.store is None:
            return method
        synchronize_batch_norm(method, self.size)
        return DistributedDataParallel(method, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})

    # --- agreement ----------------------------------------------------------------------------------------------------

    def most(self, *numbers: int) -> list[int]:
        """The largest that any process gave, place by place."""
        if self.store is None:
            return list(numbers)
        largest = torch.tensor(numbers)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in each process; if it fails in any, the exception of the first such one in all of them.

        `work` itself is not collective.
        """
        if self.store is None:
            return work()
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as problem:  # every kind, for the others wait
            error = problem
        (failed,) = self.most(self.size - self.rank if error else 0)
        if failed:
            raise self._broadcast(error, self.size - failed)
        return result

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, the only one that does it; or its exception, in all."""
        result = self.together(work if self.rank == 0 else lambda: None)
        return self._broadcast(result, 0) if self.store else result

    def _broadcast(self, value: Any, source: int) -> Any:
        box = [value]
        dist.broadcast_object_list(box, source, device=CPU)
        return value if self.rank == source else box[0]

    def report(self, say: Callable[[], None]) -> None:
        """Call `say` if no other process has; otherwise wait until it has, for the first to end may end the others."""
        if self.store is None or self.store.add("reporting", 1) == 1:
            say()
            if self.store:
                self.store.set("reported", "")
        else:
            with contextlib.suppress(dist.DistError):
                self.store.wait(["reported"], REPORTED)


ALONE = World()


class _Gather(torch.autograd.Function):
    """Equal parts (d, n, k) of all processes as (d, N, k)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return torch.cat(world.each(x).unbind(), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[:, ctx.world.part(total.shape[1])], None


# --- meeting the others -----------------------------------------------------------------------------------------------


def started_by_launcher() -> bool:
    """Whether a launcher, ours or torchrun, has started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@contextlib.contextmanager
def join(device: str, say: Callable[[WmseError | OSError], None]) -> Iterator[World]:
    """Meet the other processes that the launcher has started, if it has, to compute on `device` (auto, cpu, cuda).

    Of several processes, one gives an error to `say`, and all of them exit: with LOST_EXIT those that only lost contact
    with the others, because one of these has died.
    """
    if not started_by_launcher():
        yield ALONE
        return
    # A launcher that is killed cannot pass on a signal: then the kernel asks this process to stop.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    world = ALONE
    try:
        world = _meet("cpu:gloo,cuda:nccl" if gpu else "gloo")
        yield world
        dist.barrier()  # the first to end may end the others
        dist.destroy_process_group()
    except BrokenPipeError:  # the reader of the output has gone
        raise
    except (WmseError, OSError) as error:
        failed = error  # the name of an exception ends with its block
        world.report(lambda: say(failed))
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if os.environ.get("TORCHELASTIC_RUN_ID") != OURS:  # whose launcher says which one has died
            say(WmseError(f"process {world.rank} of {world.size} lost contact with another one, which {GONE}"))
        raise SystemExit(LOST_EXIT) from None


def _meet(backend: str) -> World:
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(rank, size, local_size, store, backend.rpartition(":")[2])
