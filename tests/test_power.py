"""The power of CPU packages and GPUs from their counters."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from builders.runs import CPU
from wmse.errors import ConfigError
from wmse.estimate import as_table, notes
from wmse.estimate.table import RunEstimate
from wmse.power import PowerMeter


def zone(folder: Path, name: str, kind: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for file, value in (("name", kind), ("energy_uj", microjoules), ("max_energy_range_uj", 10_000_000)):
        (path / file).write_text(f"{value}\n")
    return path


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured takes two seconds."""
    moments = iter((10.0, 12.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))


@pytest.mark.usefixtures("two_seconds")
def test_power_of_the_packages_from_their_counters_also_past_the_end(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 0)
    meter = PowerMeter(CPU.device, powercap=tmp_path)
    with meter:
        (first / "energy_uj").write_text("3000000")
        (second / "energy_uj").write_text("1000000")  # from 9 J over 10 J to 1 J
    assert meter.watts == pytest.approx(4 / 2)
    assert "RAPL" in meter.describe()


def test_power_that_is_not_known_is_said_and_given_power_is_taken(tmp_path: Path) -> None:
    row = RunEstimate("r", False, 1, 1, 1, 1, hours=1.0, evaluation_hours=0.0)
    meter = PowerMeter(CPU.device, powercap=tmp_path / "absent")
    with meter:
        pass
    assert meter.watts is None
    assert "--watts N" in "\n".join(notes([row], meter))
    assert as_table([row]).splitlines()[-1].endswith("—")
    with PowerMeter(CPU.device, 250.0) as meter:
        pass
    assert meter.watts == 250
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--watts"):
            PowerMeter(CPU.device, bad)


class FakeNvml:
    """Stands for the module `pynvml` on a machine with one GPU, whose counter shows `millijoules` one after another."""

    NVMLError = OSError

    def __init__(self, *millijoules: int) -> None:
        self.millijoules = list(millijoules)

    def nvmlInit(self) -> None:
        if not self.millijoules:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-1234"
        return self.millijoules.pop(0)


def gpu_meter(nvml: FakeNvml, powercap: Path, monkeypatch: pytest.MonkeyPatch) -> PowerMeter:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return PowerMeter(torch.device("cuda"), powercap=powercap)


@pytest.mark.usefixtures("two_seconds")
def test_power_of_a_gpu_from_its_counter_and_of_the_packages_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    with gpu_meter(FakeNvml(1, 5_000, 605_000), tmp_path, monkeypatch) as meter:
        (package / "energy_uj").write_text("3000000")
    assert meter.watts == pytest.approx((600 + 2) / 2)
    assert "the GPU (NVML) and the CPU packages (RAPL)" in meter.describe()


@pytest.mark.parametrize("millijoules", [(), (1, 5_000, 5_000)], ids=["no NVML", "too short for the counter"])
def test_without_the_gpus_energy_the_power_is_not_known(
    millijoules: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    with gpu_meter(FakeNvml(*millijoules), tmp_path, monkeypatch) as meter:
        (package / "energy_uj").write_text("3000000")
    assert meter.watts is None
    assert ("--watts N." in meter.describe()) == (not millijoules)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_at_work_draws_some_power(tmp_path: Path) -> None:
    device = torch.device("cuda")
    with PowerMeter(device, powercap=tmp_path) as meter:
        x = torch.randn(4096, 4096, device=device)
        for _ in range(200):
            x = torch.tanh(x @ x)
        torch.cuda.synchronize(device)
        time.sleep(0.5)
    assert meter.watts is None or 10 < meter.watts < 2000
