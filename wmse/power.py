"""The electrical power that the machine draws while something runs, where it tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from wmse.errors import ConfigError

POWERCAP = Path("/sys/class/powercap")
# A function that reads the joules used so far, and after how many it starts again from 0.
Counter = tuple[Callable[[], float], float]


class PowerMeter:
    """A context manager; afterwards `watts` is the mean power within, None where it is not known.

    Args:
        device: the energy of a GPU comes from NVML, that of the CPU packages from the kernel's RAPL counters.
        watts: the power of the whole machine, instead of measuring it.

    Raises:
        ConfigError: `watts` is not a positive number.
    """

    def __init__(self, device: torch.device, watts: float | None = None, powercap: Path = POWERCAP) -> None:
        if watts is not None and not 0 < watts < float("inf"):
            raise ConfigError(f"--watts: must be a positive number of watts, got {watts:g}")
        self.given = self.watts = watts
        self.packages = [] if watts else list(package_counters(powercap))
        self.gpu = list(gpu_counters(device)) if device.type == "cuda" and not watts else []
        self.complete = bool(self.gpu if device.type == "cuda" else self.packages)

    def __enter__(self) -> PowerMeter:
        self.before = [read() for read, _ in self.packages + self.gpu]
        self.started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        seconds = time.perf_counter() - self.started
        counters = zip(self.packages + self.gpu, self.before, strict=True)
        used = [(read() - before) % end for (read, end), before in counters]
        if not self.given:  # a counter that has not moved says only that the time was too short for it
            self.watts = sum(used) / seconds if self.complete and all(used) else None

    def describe(self) -> str:
        """One sentence on where the power comes from."""
        if self.given:
            return f"power: {self.given:g} W, as given."
        if not self.complete:
            return "power: not known on this machine, so no energy: give the machine's power with --watts N."
        found = {"the GPU (NVML)": self.gpu, "the CPU packages (RAPL)": self.packages}
        names = " and ".join(name for name, counters in found.items() if counters)
        return f"power: measured, {names} alone; --watts N takes the whole machine's instead."


def gpu_counters(device: torch.device) -> Iterator[Counter]:
    """The energy counter of the GPU, if it has one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        # By its own name: the numbers of torch and of NVML differ under CUDA_VISIBLE_DEVICES.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return
    yield lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf")


def package_counters(powercap: Path) -> Iterator[Counter]:
    """The energy counters of the CPU packages: their parts are in them already, and "psys" holds them once more."""
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                joules(zone / "energy_uj")
                yield partial(joules, zone / "energy_uj"), joules(zone / "max_energy_range_uj")
        except (OSError, ValueError):  # most systems let root alone read the counters
            continue


def joules(counter: Path) -> float:
    """The value of a counter of the kernel."""
    return int(counter.read_text()) / 1e6
