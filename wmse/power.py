"""The electrical power that the machine draws while something runs, where it tells."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

import torch

from wmse.errors import ConfigError

POWERCAP = Path("/sys/class/powercap")


class PowerMeter:
    """A context manager; afterwards `watts` is the mean power within, None where it is not known.

    Args:
        device: a GPU's power comes from nvidia-smi, that of the CPU packages from the kernel's RAPL counters.
        watts: the power of the whole machine, instead of measuring it.

    Raises:
        ConfigError: `watts` is no power.
    """

    def __init__(self, device: torch.device, watts: float | None = None, powercap: Path = POWERCAP) -> None:
        if watts is not None and not 0 < watts < float("inf"):
            raise ConfigError(f"--watts: must be a positive number of watts, got {watts:g}")
        self.given = self.watts = watts
        # Packages only: their parts are in them already, and "psys" holds them once more.
        self.counters = [] if watts else [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _package(zone)]
        self.gpu: list[str] = []
        if not watts and device.type == "cuda" and shutil.which("nvidia-smi"):
            # By its own name: the numbers of torch and of nvidia-smi differ under CUDA_VISIBLE_DEVICES.
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=100"]
            self.gpu = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", *query]
        self.complete = bool(self.gpu) if device.type == "cuda" else bool(self.counters)

    def __enter__(self) -> PowerMeter:
        self.process = subprocess.Popen(self.gpu, stdout=subprocess.PIPE, text=True) if self.gpu else None
        self.joules, self.started = [_joules(zone) for zone in self.counters], time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self.started
        parts: list[float | None] = [
            # The counter starts again at its end.
            ((_joules(zone) - before) % _joules(zone, "max_energy_range_uj")) / seconds
            for zone, before in zip(self.counters, self.joules, strict=True)
        ]
        if self.process:
            self.process.terminate()
            parts.append(mean_power(self.process.communicate()[0]))
        if self.given is None:
            known = [part for part in parts if part is not None]
            self.watts = sum(known) if self.complete and len(known) == len(parts) else None

    def describe(self) -> str:
        """One sentence on where the power comes from."""
        if self.given:
            return f"power: {self.given:g} W, as given."
        if not self.complete:
            return "power: not known on this machine, so no energy: give the machine's power with --watts N."
        names = ["the GPU (nvidia-smi)"] * bool(self.gpu) + ["the CPU packages (RAPL)"] * bool(self.counters)
        return f"power: measured, {' and '.join(names)} alone; --watts N takes the whole machine's instead."


def mean_power(lines: str) -> float | None:
    """The mean of nvidia-smi's samples, one a line in watts; None if there is none ("[N/A]", or too short)."""
    samples = [float(line) for line in lines.split() if line.replace(".", "", 1).isdigit()]
    return sum(samples) / len(samples) if samples else None


def _package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package") and _joules(zone) >= 0
    except (OSError, ValueError):  # most systems let root alone read the counters
        return False


def _joules(zone: Path, name: str = "energy_uj") -> float:
    return int((zone / name).read_text()) / 1e6
