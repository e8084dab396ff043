"""The GPUs as NVIDIA's driver knows them, and as torch does: which of the two fails is what a user must know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    """A GPU now: how many processes compute on it, and bytes of its memory."""

    processes: int
    used: int
    total: int


class Driver(NamedTuple):
    """The driver: its version, the CUDA (major version) that it is for, and its GPUs by UUID."""

    version: str
    cuda: int
    gpus: dict[str, Gpu]


class Device(NamedTuple):
    """A GPU that torch computes on."""

    name: str
    uuid: str
    capability: tuple[int, int]


class Torch(NamedTuple):
    """What torch sees: the CUDA that it was built for (None without), for which architectures, and its GPUs."""

    available: bool
    cuda: str | None
    architectures: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    memory: int = 0  # Bytes of the smallest of them.
    bf16: bool = False  # As `precision: auto` asks.


def read_driver() -> Driver | None:
    """Ask the driver; None if there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = {_plain(pynvml.nvmlDeviceGetUUID(handle)): _read_gpu(handle) for handle in handles}
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
        return Driver(str(pynvml.nvmlSystemGetDriverVersion()), cuda, gpus)
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(handle: object) -> Gpu:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)), memory.used, memory.total)


def read_torch() -> Torch:
    """Ask torch."""
    if not torch.cuda.is_available():
        return Torch(False, torch.version.cuda)
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = tuple(Device(p.name, _plain(str(p.uuid)), (p.major, p.minor)) for p in properties)
    least = min(p.total_memory for p in properties)
    return Torch(
        True, torch.version.cuda, tuple(torch.cuda.get_arch_list()), devices, least, torch.cuda.is_bf16_supported()
    )


def _plain(uuid: str) -> str:
    return uuid.removeprefix("GPU-")


def supports(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for these architectures ("sm_80", "compute_90") runs on a GPU of this compute capability.

    Machine code runs on later minor versions of the same major version, intermediate code on everything later.
    """
    for name in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name):
            built = int(match[2]), int(match[3])
            if built <= capability and (match[1] == "compute" or built[0] == capability[0]):
                return True
    return False
