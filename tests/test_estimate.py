"""The estimate: exact counts, shared warm-ups, scaling, power, and the command from end to end."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, TINY, make_job, tiny_spec

from wmse.cli import main
from wmse.config import load_project, read_yaml
from wmse.datasets import ArrayDataset
from wmse.errors import ConfigError, WmseError
from wmse.estimate import WarmUp, as_table, estimate_runs, notes, total
from wmse.estimate.plan import extraction_key, feature_count, image_counts, image_shape, step_key, workload
from wmse.estimate.table import RunEstimate, format_count, format_hours, format_number
from wmse.estimate.warm_up import FIRST_SIZE, KNN_TEST, Cost, measure
from wmse.methods import build_encoder
from wmse.power import PowerMeter
from wmse.runtime import Runtime
from wmse.training import Trainer

CPU = torch.device("cpu")


def no_power(tmp_path: Path) -> PowerMeter:
    return PowerMeter(CPU, powercap=tmp_path / "absent")


def fake_warm_up(**seconds: float) -> Any:
    """Costs that are known in advance, 100 W each."""

    class Fake:
        def __getattr__(self, name: str) -> Callable[..., Cost]:
            return lambda spec, *_: Cost(seconds.get(name, 1e-15), 8, spec.batch_size, 100.0)

    return Fake()


def test_counts_are_those_of_the_trainer(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4", epochs=7, lr_drops=[2], eval_every=3, eval_every_final=1)
    trainer = Trainer(make_job(spec, data, tmp_path, Runtime(CPU)))
    history = trainer.run()
    work = workload(spec, 200)
    assert work.steps == trainer.progress.step == 7 * (200 // 64)
    assert work.views == history[-1].views == 7 * 3 * 64 * 4
    assert work.evaluations == sum(record.knn5_top1 is not None for record in history) == 3  # after epochs 3, 6 and 7


def test_counts_of_the_paper() -> None:
    spec = load_project({"preset": "paper"}).find("cifar10/wmse-4/seed0")
    work = workload(spec, image_counts("cifar10", ROOT / "nowhere")["pretrain"])
    assert work.steps == 1000 * (50_000 // 256)
    assert work.views == work.steps * 1024
    assert work.evaluations == 950 // 20 + 50 // 5


def test_a_baseline_trains_nothing_and_a_large_batch_is_an_error() -> None:
    assert set(vars(workload(tiny_spec("random"), 10)).values()) == {0}
    with pytest.raises(ConfigError, match=r"batch_size \(64\) exceeds the 63 images"):
        workload(tiny_spec(), 63)


def test_runs_with_equal_steps_share_a_warm_up() -> None:
    spec = tiny_spec("wmse-2", benchmark="cifar10")
    for same in (
        tiny_spec("wmse-2", seed=1, epochs=9, lr=1e-3, lr_drops=[3], eval_every=1),
        tiny_spec("wmse-2", normalize=False, whitening="cholesky"),
        tiny_spec("wmse-2", benchmark="cifar100"),
    ):
        assert step_key(same) == step_key(spec)
        assert extraction_key(same) == extraction_key(spec)
    for other in (
        tiny_spec("wmse-4"),
        tiny_spec("simclr"),
        tiny_spec("wmse-2", batch_size=128),
        tiny_spec("wmse-2", w_iter=2),
        tiny_spec("wmse-2", width=8),
        tiny_spec("wmse-2", embedding=16),
        tiny_spec("wmse-2", whitening="identity"),
        tiny_spec("wmse-2", precision="bf16"),
        tiny_spec("wmse-2", benchmark="stl10"),  # larger images
        tiny_spec("wmse-2", benchmark="imagenet"),  # decodes files
    ):
        assert step_key(other) != step_key(spec)
    assert len({step_key(run) for run in load_project({"preset": "paper"}).runs if run.trained}) <= 27


@pytest.mark.parametrize("label", ["wmse-2", "random", "pixels"])
def test_the_length_of_the_features(label: str) -> None:
    spec = tiny_spec(label, arch="resnet50") if label == "wmse-2" else tiny_spec(label)
    expected = 3 * 8 * 8 if label == "pixels" else build_encoder(spec, 0).features
    assert feature_count(spec) == expected


class Sleeper:
    """Something that takes 1 ms an image; its sizes are recorded."""

    def __init__(self, limit: int = 10**9) -> None:
        self.sizes: list[int] = []
        self.limit = limit

    def __call__(self, size: int) -> Callable[[], None]:
        if size > self.limit:
            raise torch.OutOfMemoryError("too large")
        self.sizes.append(size)
        return lambda: time.sleep(size / 1000)


def test_a_warm_up_grows_to_the_whole_batch_if_it_can(tmp_path: Path) -> None:
    sleeper = Sleeper()
    cost = measure(sleeper, 32, 2.0, no_power(tmp_path), CPU)
    assert (sleeper.sizes[0], cost.size, cost.full) == (FIRST_SIZE, 32, 32)
    assert 0.001 <= cost.seconds < 0.002
    assert cost.watts is None


def test_a_warm_up_stays_within_its_budget_and_gives_the_cost_per_image(tmp_path: Path) -> None:
    sleeper = Sleeper()
    began = time.perf_counter()
    cost = measure(sleeper, 100_000, 0.6, no_power(tmp_path), CPU, fit=lambda n: n - n % 32 if n >= 32 else n)
    assert time.perf_counter() - began < 1.5
    assert 32 <= cost.size < 600
    assert cost.size % 32 == 0  # whole sub-batches
    assert 0.001 <= cost.seconds < 0.002


def test_a_batch_that_does_not_fit_into_the_memory_is_halved(tmp_path: Path) -> None:
    cost = measure(Sleeper(limit=40), 1024, 1.0, no_power(tmp_path), CPU)
    assert cost.out_of_memory
    assert FIRST_SIZE < cost.size <= 40
    with pytest.raises(WmseError, match="not even 8 images"):
        measure(Sleeper(limit=4), 1024, 1.0, no_power(tmp_path), CPU)


def test_hours_and_energy_are_sums_over_the_work(tmp_path: Path) -> None:
    spec = tiny_spec("wmse-2", benchmark="fashion_mnist", epochs=3)  # evaluated after epochs 2 and 3
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(step=1.0))
    steps = 3 * (10_000 // 64)
    assert row.hours == pytest.approx(steps * 64 / 3600)
    assert row.evaluation_hours < 1e-6
    assert (row.ms_per_step, row.views_per_second) == (64_000, 2)
    assert row.kwh == pytest.approx(row.hours / 10)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(extraction=1.0))
    assert row.hours == pytest.approx(3 * 12_000 / 3600)
    assert row.evaluation_hours == pytest.approx(row.hours)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(knn=1.0))
    assert row.hours == pytest.approx(3 * 10_000 * 2_000 / KNN_TEST / 3600)
    (row,) = estimate_runs([spec], tmp_path, tmp_path, fake_warm_up(linear=1.0))
    assert row.hours == pytest.approx(TINY["probe_epochs"] * 10_000 / 3600)


def test_finished_runs_are_left_out_of_the_sum(tmp_path: Path) -> None:
    specs = [tiny_spec("wmse-2", benchmark="fashion_mnist", seed=seed) for seed in (0, 1)]
    (tmp_path / "runs" / specs[0].run).mkdir(parents=True)
    (tmp_path / "runs" / specs[0].run / "result.json").write_text("{}")
    rows = estimate_runs(specs, tmp_path, tmp_path, fake_warm_up(step=1.0))
    assert [row.done for row in rows] == [True, False]
    whole = total(rows)
    assert (whole["runs"], whole["done"], whole["views"]) == (1, 1, rows[1].views)
    assert whole["hours"] == rows[1].hours
    assert "done" in as_table(rows).splitlines()[1]
    everything = [rows[0], replace(rows[1], done=True)]
    assert total(everything)["kwh"] == total(everything)["hours"] == 0


# --- power ------------------------------------------------------------------------------------------------------------


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
    meter = PowerMeter(CPU, powercap=tmp_path)
    with meter:
        (first / "energy_uj").write_text("3000000")
        (second / "energy_uj").write_text("1000000")  # from 9 J over 10 J to 1 J
    assert meter.watts == pytest.approx(4 / 2)
    assert "RAPL" in meter.describe()


def test_power_that_is_not_known_is_said_and_given_power_is_taken(tmp_path: Path) -> None:
    row = RunEstimate("r", False, 1, 1, 1, 1, hours=1.0, evaluation_hours=0.0)
    meter = no_power(tmp_path)
    with meter:
        pass
    assert meter.watts is None
    assert "--watts N" in "\n".join(notes([row], meter))
    assert as_table([row]).splitlines()[-1].endswith("—")
    with PowerMeter(CPU, 250.0) as meter:
        pass
    assert meter.watts == 250
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--watts"):
            PowerMeter(CPU, bad)


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


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(999), "999"),
        (format_count(102_400_000), "102.4 M"),
        (format_count(97_000), "97 k"),
        (format_count(3.0749e9), "3.075 G"),
        (format_number(None), "—"),
        (format_number(0), "0"),
        (format_number(0.00042), "0.0004"),
        (format_number(0.01234), "0.0123"),
        (format_number(12345.6), "12,346"),
        (format_hours(0.01), "36 s"),
        (format_hours(0.2), "12.0 min"),
        (format_hours(3.4), "3.4 h"),
        (format_hours(124.8), "5.2 days"),
    ],
)
def test_formats(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_table_is_aligned_and_marks_what_was_scaled() -> None:
    times = {"ms_per_step": 10.0, "views_per_second": 5.0, "hours": 2.0, "evaluation_hours": 0.5, "kwh": 1.0}
    rows = [
        RunEstimate("whole", False, 10, 5, 1, 64, 64, **times),
        RunEstimate("a longer name", False, 10, 5, 1, 64, 32, **times),
        RunEstimate("baseline", False, 0, 0, 0, 64, hours=1.0, evaluation_hours=1.0, kwh=0.5),
    ]
    lines = as_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert ["10* " in line for line in lines] == [False, False, True, False, False]
    assert lines[-1].split() == ["sum", "of", "3", "20", "10", "5", "2", "2.5"]
    meter = PowerMeter(CPU, 100.0)
    assert any(line.startswith("*:") for line in notes(rows, meter))
    assert not any(line.startswith(("*:", "!:")) for line in notes(rows[:1], meter))
    assert any(line.startswith("!:") for line in notes([replace(rows[1], out_of_memory=True)], meter))


# --- end to end -------------------------------------------------------------------------------------------------------


def project(folder: Path, methods: list[str], benchmarks: list[str], **parameters: Any) -> Path:
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    blocks = [{"benchmarks": benchmarks, "methods": methods}]
    config = {"preset": "quick", "experiments": blocks, "parameters": {"*": {**TINY, **parameters}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["wmse-2", "simclr", "byol", "random", "pixels"]
    root = project(tmp_path, labels, ["fashion_mnist", "imagenet100_mini"], w_size=32)
    common = ["estimate", "--root", str(root), "--data-root", str(tmp_path), "--threads", "1", "--seconds", "0.5"]
    assert main([*common, "--watts", "200", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {row["run"]: row for row in content["runs"]}
    assert set(rows) == {f"{b}/{m}/seed0" for b in ("fashion_mnist", "imagenet100_mini") for m in labels}
    row = rows["fashion_mnist/wmse-2/seed0"]
    assert row["views"] == 3 * (10_000 // 64) * 64 * 2
    assert row["hours"] > row["evaluation_hours"] > 0
    assert row["kwh"] == pytest.approx(row["hours"] * 0.2)
    assert rows["fashion_mnist/pixels/seed0"]["steps"] == 0
    assert content["sum"]["hours"] == pytest.approx(sum(row["hours"] for row in rows.values()))
    assert content["runtimes"][0]["threads"] == 1
    run = load_project(read_yaml(root / "config.yaml")).runs[0].run
    (root / "results/runs" / run).mkdir(parents=True)
    (root / "results/runs" / run / "result.json").write_text("{}")
    assert main(common) == 0
    shown = capsys.readouterr()
    assert "sum of 9 (1 done)" in shown.out
    assert '"precision": "fp32"' in shown.out
    assert "training step" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results", "workflow"]


def test_less_than_a_sub_batch_is_whitened_when_a_whole_one_takes_too_long(tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4", batch_size=512, w_size=256, embedding=128, benchmark="imagenet")
    warm_up = WarmUp(lambda _: Runtime(CPU), 1e-3, no_power(tmp_path), tmp_path, lambda line: None)
    cost = warm_up.step(spec)
    assert cost.size == FIRST_SIZE
    assert cost.seconds > 0
    assert warm_up.step(replace(spec, seed=1)) is cost
    assert image_shape("imagenet") == (375, 500)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg"}


@pytest.mark.parametrize("option", ["--watts", "--seconds"])
def test_bad_numbers_are_one_message(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--root", str(ROOT), option, "0"]) == 1
    assert f"wmse: error: {option}: must be a positive number" in capsys.readouterr().err


def test_too_large_a_batch_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path, ["wmse-2"], ["fashion_mnist"], batch_size=32 * 1000)
    assert main(["estimate", "--root", str(root)]) == 1
    assert "batch_size (32000) exceeds the 10000 images" in capsys.readouterr().err
