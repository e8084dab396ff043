"""How a run is computed: the choices left on "auto"."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from wmse.errors import ConfigError
from wmse.runtime import resolve


def test_asking_for_a_gpu_where_there_is_none_is_one_message() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        resolve(device="cuda")


def test_a_gpu_is_claimed_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[tuple[object, ...]] = []

    def claim(*arguments: object) -> int:
        claims.append(arguments)
        return 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"5f{index}"))
    monkeypatch.setattr("wmse.runtime.claim_gpu", claim)
    assert resolve("cuda", "fp32", gpu_slots=3).device == torch.device("cuda:1")
    assert claims == [(["5f0", "5f1"], 3, print)]
    assert resolve("cuda:0", "fp32").device == torch.device("cuda:0")  # named, so that nothing is claimed
    assert len(claims) == 1


def test_threads_without_a_core_each_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("wmse.runtime.os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    for threads, idle, told in ((4, 3.9, False), (4, 2.5, True), (2, 1.9, False), (1, 0.0, False), (8, 0.0, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr("wmse.runtime.idle_cores", lambda cores, idle=idle: idle)
        lines.clear()
        resolve("cpu", "fp32", say=lines.append)
        assert [line.startswith("note: other work keeps 1.5 of 4 cores busy") for line in lines] == [True] * told


def test_float32_means_float32() -> None:
    resolve("cpu", "fp32")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_the_threads_are_set_and_recorded() -> None:
    assert resolve("cpu", "fp32", threads=1).describe()["threads"] == torch.get_num_threads() == 1


def test_batch_norm_on_a_cpu_is_exact_unless_told_otherwise() -> None:
    x = torch.randn(256, 8, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    exact = torch.nn.BatchNorm2d(8, affine=False).double()(x.double())
    runtime = resolve(device="cpu", threads=torch.get_num_threads())
    found = runtime.place(torch.nn.BatchNorm2d(8, affine=False))(runtime.batch(x))
    assert (found - exact).norm() < 1e-5 * exact.norm()
