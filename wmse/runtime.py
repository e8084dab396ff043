"""How a run is computed: device, precision, memory format, threads. Nothing here is part of a run's hash."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wmse.distributed import ALONE, World
from wmse.errors import ConfigError, OutOfMemoryError, shorten
from wmse.gpus import claim_gpu
from wmse.machine import idle_cores
from wmse.provenance import peak_memory_bytes

MOST_THREADS = 1024  # The OpenMP library ends the process when it cannot start as many as asked for.


@dataclass(frozen=True)
class Runtime:
    """Resolved settings.

    Attributes:
        compile: the training step only. The evaluation's forward passes are few, and would be compiled once more.
        precision: "fp32" (no TF32 anywhere), "tf32" (in convolutions) or "bf16" (autocast of the encoder and head).
            Whitening and losses are float32 in every case.
        threads: of this process.
        world: the processes that share the run.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    threads: int = 1
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the encoder's and head's forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device in the chosen memory format."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=memory_format)

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        """The same memory format for a batch of images."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def compile_forward(self, module: nn.Module) -> None:
        """Compile a module's forward pass, if that is wanted, as one graph; on a GPU launched at once, as CUDA graphs.

        In place, so that the names of the parameters stay. The first step compiles it.
        """
        if self.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            module.compile(fullgraph=True, dynamic=False, mode=mode)

    def begin_step(self) -> None:
        """To be called before every training step: CUDA graphs may now overwrite what they gave in the last one."""
        if self.compile and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()

    def describe(self) -> dict[str, Any]:
        """Plain values, for the result file."""
        settings = {key: value for key, value in vars(self).items() if key != "world"}
        return {**settings, "device": str(self.device), **self.world.describe()}


def resolve(
    device: str = "auto",
    precision: str = "auto",
    channels_last: str = "auto",
    compile: str = "auto",
    deterministic: bool = False,
    threads: int | None = None,
    gpu_slots: int = 1,
    say: Callable[[str], None] = print,
    world: World = ALONE,
) -> Runtime:
    """Choose what was left on "auto" for this machine, and set torch's global switches accordingly.

    A GPU that is not named is claimed (`wmse.gpus`), at most `gpu_slots` processes on each; `say` hears of the waiting.
    The threads are shared among the processes of `world` on this host, each of which has a GPU of its own.

    Raises ConfigError: no such device, a GPU was asked for and there is none, too few of them, an impossible number of
    threads, or `compile` for several processes.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads: must be from 1 to {MOST_THREADS}, got {threads}")
    if world.store and compile == "true":  # a collective interrupts the one graph that is compiled
        raise ConfigError("compile: not possible for a run on several processes: set compile: false, or processes: 1")
    if world.local_size > 1:
        threads = max(1, (threads or len(os.sched_getaffinity(0))) // world.local_size)
        seen = torch.cuda.device_count()
        if device.startswith("cuda:") or (device != "cpu" and 0 < seen < world.local_size):
            raise ConfigError(
                f"processes: {world.local_size} of them need a GPU each and `device: cuda`; torch sees {seen}, and "
                f"device is {device}: lower `processes`, or take the CPU (`device: cpu`)"
            )
    place = _device(device, gpu_slots if world.local_size == 1 else 1, say)  # NCCL refuses processes that share one
    on_gpu = place.type == "cuda"
    if on_gpu and world.store:
        torch.cuda.set_device(place)  # which NCCL is to use
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else cpu_has_bf16()
        precision = "bf16" if has_bf16 else "fp32"
    if threads:
        torch.set_num_threads(threads)
    if not on_gpu and not world.store:  # several processes wait for each other anyway, and would all say so
        _warn_of_company(torch.get_num_threads(), say)
    torch.backends.cuda.matmul.allow_tf32 = False  # the covariance needs all digits of float32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = on_gpu and not deterministic
    if deterministic and on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Runtime(
        device=place,
        precision=precision,
        # Faster on tensor cores. On a CPU, torch's batch norm then sums in float32 one by one, which makes errors of
        # 4e-4 instead of 4e-8, and W-MSE break down (docs/learning.md).
        channels_last=channels_last == "true" or (channels_last == "auto" and on_gpu),
        compile=compile == "true",  # "auto" is off: on a CPU it gains less than 10 %; not measured on a GPU
        deterministic=deterministic,
        threads=torch.get_num_threads(),
        world=world,
    )


def _warn_of_company(threads: int, say: Callable[[str], None]) -> None:
    """Say so if others use the cores that the threads need: at every operation, all wait for the one without a core."""
    cores = os.sched_getaffinity(0)
    if 1 < threads <= len(cores) and (idle := idle_cores(cores)) < threads - 0.5:
        say(
            f"note: other work keeps {len(cores) - idle:.1f} of {len(cores)} cores busy, and {threads} threads, which "
            "wait for each other, may be many times slower than fewer: end that work, or lower --threads (for "
            "Snakemake --cores)"
        )


def _device(name: str, gpu_slots: int, say: Callable[[str], None]) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU: `wmse doctor` says why; or take the CPU")
    if name == "cuda":
        uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
        index = claim_gpu(uuids, gpu_slots, say)  # also the only visible one, which may be one of several to others
        name = f"cuda:{index}" if len(uuids) > 1 else name
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ConfigError(f"device: {name} was asked for, but torch sees {seen} GPUs: take cuda:0 to cuda:{seen - 1}")
    return device


# How torch's CPU allocator, oneDNN (which says no more than that), C++ and the kernel say it.
NO_MEMORY = ("DefaultCPUAllocator", "could not create a ", "bad_alloc", "Cannot allocate memory")


def lacks_memory(error: Exception) -> bool:
    """Whether an allocation has failed, in any of the ways in which Python, NumPy and torch report it."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in NO_MEMORY)
    )


@contextlib.contextmanager
def out_of_memory(where: Callable[[], str], device: torch.device, remedy: str) -> Iterator[None]:
    """Turn every kind of failed allocation into one OutOfMemoryError that says `where` and gives peak and `remedy`."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        peak = peak_memory_bytes(device.type) / 2**20
        raise OutOfMemoryError(
            f"{where()}: out of memory on {device}, after a peak of {peak:,.0f} MiB ({reason}). {remedy}"
        ) from None


@contextlib.contextmanager
def compiler_errors(where: Callable[[], str]) -> Iterator[None]:
    """Turn torch's failure to compile into one ConfigError that says `where`, and what to do."""
    try:
        yield
    except Exception as error:
        # By their modules, as they have no public names, and importing torch's compiler takes seconds.
        if not any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        raise ConfigError(
            f"{where()}: compile: torch could not compile the training step ({shorten(reason)}). It needs a C++ "
            "compiler (g++ or clang; also for a GPU), of which `CXX` or PATH says where it is. Install one, or set "
            "`compile: false`; the run goes on from its checkpoints either way"
        ) from None


BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # As /proc/cpuinfo names what a CPU can do.


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; emulation would be slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in BF16_FLAGS)
