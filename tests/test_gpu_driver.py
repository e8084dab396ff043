"""What NVIDIA's driver says, and for which GPUs a torch was built."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest
import torch

from wmse.gpu_driver import Driver, Gpu, read_driver, read_torch, supports


def test_the_driver_tells_its_version_and_who_is_on_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "Init": lambda: None,
        "Shutdown": lambda: None,
        "DeviceGetCount": lambda: 2,
        "DeviceGetHandleByIndex": lambda index: index,
        "DeviceGetUUID": lambda handle: f"GPU-{handle}",
        "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=handle, total=80),
        "DeviceGetComputeRunningProcesses": lambda handle: [object()] * handle,
        "SystemGetCudaDriverVersion_v2": lambda: 12040,
        "SystemGetDriverVersion": lambda: "550.54",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
    assert read_driver() == Driver("550.54", 12, {"0": Gpu(0, 0, 80), "1": Gpu(1, 1, 80)})


def test_without_a_driver_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert read_driver() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert read_torch() == (False, torch.version.cuda, (), (), 0, False)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (8, 0), True),
        (["sm_80"], (8, 9), True),  # a later minor version
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),  # machine code of another major version
        (["sm_80", "compute_80"], (9, 0), True),  # the driver compiles it
        (["compute_90"], (8, 0), False),
        (["sm_90a", "sm_120"], (12, 0), True),
        (["sm_75", "gfx90a"], (7, 0), False),
    ],
)
def test_which_gpus_a_torch_was_built_for(architectures: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert supports(architectures, capability) is runs
