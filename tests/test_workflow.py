"""The DAG with a real Snakemake: a whole run of a tiny configuration, reruns, and configuration errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.runs import TINY
from builders.workflow import snakemake
from wmse.errors import WmseError
from wmse.runs.bundle import import_bundle, write_bundle
from wmse.runs.folder import RunFolder
from wmse.runs.verify import verify
from wmse.workflow import (
    binds,
    forget_killed_run,
    hold_folders,
    outside_folders,
    placement,
    pretrain_flags,
    pretrain_threads,
    progress_flag,
    rule_graph_config,
    share_of_cores,
    shown_variables,
    stage_command,
)

LABELS = ("simclr", "byol", "wmse-2", "wmse-4", "wmse-2@no-whitening", "random", "pixels")
STREAMED = "imagenet100_mini/wmse-2"
CONFIG: dict[str, Any] = {
    "preset": "quick",
    "device": "cpu",
    "experiments": [
        {"experiment": "table1", "benchmarks": ["fashion_mnist"]},
        {"benchmarks": ["fashion_mnist"], "methods": ["wmse-2@no-whitening"]},
        {"benchmarks": ["imagenet100_mini"], "methods": ["wmse-2"]},
    ],
    "parameters": {"*": {**TINY, "epochs": 2, "lr_drops": [1], "batch_size": 512, "probe_batch_size": 1000}},
}
REPORT = {"tables": 1, "claims": 1, "plots": 1, "page": 1, "all": 1}


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """The jobs that a dry run announces: rule -> count."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (done.stdout + done.stderr).split("Job stats:")[-1].splitlines()
    rows = [line.split() for line in table]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit() and row[0] != "total"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole DAG has run once."""
    folder = tmp_path_factory.mktemp("dag")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copy2))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/*/result.json"))
    return {content["run"].rsplit("/", 1)[0].removeprefix("fashion_mnist/"): content for content in found}


def test_the_whole_dag_leaves_tables_plots_and_results(finished: Path) -> None:
    assert sorted(results(finished)) == sorted([*LABELS, STREAMED])
    plots = {path.stem for path in (finished / "results/plots").glob("*.png")}
    assert plots == {"training", "dynamics", "accuracy", "collapse", "time", "map", "dag"}
    assert "not tested at this budget" in (finished / "results/claims.md").read_text()
    assert "Ablation: whitening" in (finished / "results/tables.md").read_text()
    tables = (finished / "results/tables.md").read_text()
    for result in results(finished).values():
        assert f"{result['metrics']['linear_top1']:.2f}" in tables
        assert result["run"] in tables
    assert "not run" in tables  # the paper's benchmarks
    page = (finished / "results/report.html").read_text()
    assert page.count("<svg ") == len(plots)
    assert page.count(">log of the training</a>") == len(results(finished)) - 2


def test_every_job_left_a_log(finished: Path) -> None:
    for run in (content["run"] for content in results(finished).values()):
        assert (finished / "results/runs" / run / "evaluate.log").read_text().startswith(run)


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    assert planned(finished) == {}
    assert "Nothing to be done" in snakemake(finished).stdout + snakemake(finished).stderr


def test_changing_one_runs_parameters_reruns_that_run_alone(finished: Path) -> None:
    change = json.dumps({"fashion_mnist/wmse-2": {"lr": 0.004}})
    jobs = planned(finished, "--config", f"parameters={change}")
    assert jobs == {"pretrain": 1, "evaluate": 1, "dag": 1, **REPORT}


def test_another_seed_adds_its_runs_and_keeps_the_others(finished: Path) -> None:
    assert planned(finished, "--config", "seeds=[0, 1]") == {
        "pretrain": 6,
        "evaluate": 8,
        "dag": 1,  # its numbers of jobs
        **REPORT,
    }


@pytest.mark.parametrize(
    "setting",
    [
        "device=auto",
        "threads=1",
        "compile=false",
        "checkpoint_seconds=30",
        "keep_checkpoints=3",
        "container=docker://other/image",
    ],
)
def test_settings_of_the_machine_rerun_nothing(finished: Path, setting: str) -> None:
    assert planned(finished, "--config", setting) == {}


def test_switching_to_containers_reruns_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A dry run asks the engine for nothing but its version.
    engine = finished / "bin" / "apptainer"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\necho apptainer version 1.4.0\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{engine.parent}:{os.environ['PATH']}")
    (finished / "image.sif").touch()
    assert planned(finished, "--use-singularity", "--config", "container=image.sif") == {}


def test_preparing_the_data_again_reruns_no_training(copy: Path) -> None:
    manifest = copy / "data/fashion_mnist/prepared/manifest.json"
    manifest.touch()
    assert planned(copy) == {}


def test_a_lost_result_is_evaluated_again_without_training(copy: Path) -> None:
    run = results(copy)["wmse-4"]["run"]
    before = results(copy)["wmse-4"]["metrics"]
    (copy / "results/runs" / run / "result.json").unlink()
    assert planned(copy) == {"evaluate": 1, **REPORT}
    assert snakemake(copy).returncode == 0
    assert results(copy)["wmse-4"]["metrics"] == before


def test_a_lost_encoder_comes_back_from_the_checkpoint_with_the_same_bits(copy: Path) -> None:
    encoder = Path("results/runs") / results(copy)["simclr"]["run"] / "encoder.safetensors"
    before = (copy / encoder).read_bytes()
    (copy / encoder).unlink()
    assert snakemake(copy, str(encoder)).returncode == 0
    assert (copy / encoder).read_bytes() == before


def test_imported_runs_are_not_computed_again_and_fill_the_tables(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "config.yaml", tmp_path)
    for i, run in enumerate(sorted(finished.glob("results/runs/*/*/*"))):
        bundle, _ = write_bundle(RunFolder(run), tmp_path / f"{i}.tar")
        import_bundle(bundle, tmp_path / "results")
        bundle.unlink()
    assert planned(tmp_path) == {"dag": 1, **REPORT}
    done = snakemake(tmp_path, "--forcerun", "tables")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("tables.md", "claims.md"):
        assert (tmp_path / "results" / name).read_bytes() == (finished / "results" / name).read_bytes()
    assert planned(tmp_path) == {}
    findings = verify([], tmp_path / "data", tmp_path / "results")
    assert (findings.problems, findings.checked["imported.json"]) == ([], len(results(finished)))


def test_snakemakes_own_report_needs_no_network(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    done = snakemake(finished, "--report", "report.zip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downloading" not in done.stdout + done.stderr
    with zipfile.ZipFile(finished / "report.zip") as report:
        names = [Path(name).name for name in report.namelist()]
        page = report.read("report/report.html").decode()
    figures = {path.name for path in (finished / "results/plots").glob("*.png")}
    assert {"report.html", "tables.md", "claims.md", *figures} <= set(names)
    assert "W-MSE" in page


def test_parallel_jobs_never_oversubscribe_the_cores(finished: Path) -> None:
    threads = {label: result["provenance"]["runtime"]["threads"] for label, result in results(finished).items()}
    assert set(threads.values()) == {1}  # more runs than cores: side by side


def test_few_runs_share_the_cores_by_their_length(finished: Path) -> None:
    few = json.dumps([{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2", "wmse-4"]}])
    done = snakemake(finished, "--dry-run", "--printshellcmds", "--config", "seeds=[7]", f"experiments={few}")
    threads = dict(re.findall(r"wmse pretrain .*?runs/fashion_mnist/(wmse-\d)/seed7\S* --threads (\d)", done.stdout))
    assert threads == {"wmse-2": "1", "wmse-4": "2"}


def test_long_trainings_come_first_and_nothing_that_is_ready_waits_for_one(finished: Path) -> None:
    done = snakemake(finished, "--dry-run", "--forceall", "--config", "seeds=[7]")
    jobs = re.findall(r"^rule (\w+):\n((?: .*\n)+)", done.stdout + done.stderr, flags=re.MULTILINE)
    priority: dict[str, set[float]] = {}
    for rule, text in jobs:
        method = re.search(r"method=(wmse-\d),", text) if rule == "pretrain" else None
        value = re.search(r"priority: (\S+)", text)
        priority.setdefault(method[1] if method else rule, set()).add(float(value[1]) if value else 0.0)
    assert priority["wmse-4"] == {1.0}
    assert priority["wmse-2"] == priority["pretrain"] == {0.5}
    assert priority["prepare"] == priority["evaluate"] == {1.0}


def test_the_figure_of_the_dag_shows_the_rules_that_ran(finished: Path) -> None:
    figure = (finished / "results/plots/dag.svg").read_text()
    for text in ("prepare", "2 jobs", "pretrain", "6 jobs", "evaluate", "8 jobs", "tables", "claims", "page"):
        assert f"<!-- {text} -->" in figure


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["preset=fast"], ["key 'preset'", "unknown preset 'fast'", "quick"]),
        (["sedes=[1]"], ["unknown key 'sedes'", "seeds"]),
        (["seeds=many"], ["key 'seeds'"]),
        (["benchmarks=[cifar1000]"], ["key 'benchmarks'", "cifar1000", "fashion_mnist"]),
        (['parameters={"*": {"w_size": 33, "batch_size": 100}}'], ["batch_size (100)", "multiple of w_size (33)"]),
        (['parameters={"*": {"embedding": 64}}'], ["w_size (32)", "greater than embedding (64)"]),
        (['parameters={"*": {"epochs": "x"}}'], ["epochs must be an integer"]),
    ],
)
def test_a_bad_configuration_stops_before_any_job_with_one_message(
    settings: list[str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    done = snakemake(tmp_path, "--config", *settings)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    assert output.count("configuration: ") == 1
    assert [word for word in words if word not in output] == []
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "data").exists()


SETTINGS: dict[str, Any] = {
    "preset": "quick",
    "plugins": [],
    "data_root": "data sets",
    "device": "cpu",
    "gpu_slots": 1,
    "threads": "auto",
    "channels_last": True,
    "compile": "auto",
    "deterministic": False,
    "checkpoint_seconds": 600,
    "checkpoint_epochs": None,
    "keep_checkpoints": 2,
}


def test_locks_of_a_killed_run_are_removed_and_those_of_a_live_one_are_not(tmp_path: Path) -> None:
    lock = tmp_path / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    results, lines = str(tmp_path / "results"), []
    held = hold_folders(results, ["snakemake", "--cores", "2"], tmp_path)
    forget_killed_run(results, lines.append, tmp_path)
    assert lines == [f"{results}: at work here is snakemake --cores 2 (pid {os.getpid()} on {socket.gethostname()})"]
    forget_killed_run(str(tmp_path / "other"), lines.append, tmp_path)  # a look at other results in the same folder
    assert lock.exists()
    assert len(lines) == 1
    for file in held:
        file.close()
    forget_killed_run(results, lines.append, tmp_path)
    assert lines[1:] == [f"{results}: the last run here was killed; going on from where it was"]
    assert not lock.exists()


def test_results_are_held_by_one_and_a_working_folder_by_several(tmp_path: Path) -> None:
    first = hold_folders(str(tmp_path / "a"), ["first"], tmp_path)
    with pytest.raises(WmseError, match="is locked by first"):
        hold_folders(str(tmp_path / "a"), ["second"], tmp_path / "elsewhere")
    for file in (*first, *hold_folders(str(tmp_path / "b"), ["third"], tmp_path)):
        file.close()


def test_a_container_sees_the_folders_outside_and_both_ends_of_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, disk = tmp_path / "work", tmp_path / "disk"
    work.mkdir()
    (disk / "cifar10").mkdir(parents=True)
    (work / "data").symlink_to(disk)
    monkeypatch.chdir(work)
    assert outside_folders(work, "results", "data", ["cifar10"]) == [(str(disk), str(disk))]
    (tmp_path / "link").symlink_to(disk)
    pairs = outside_folders(work, "results", f"{tmp_path}/link", [])
    assert pairs == [(str(disk), f"{tmp_path}/link"), (str(disk), str(disk))]
    assert binds(pairs, f"/a:/b,{disk}:{disk}") == f"/a:/b,{disk}:{disk},{disk}:{tmp_path}/link"
    with pytest.raises(WmseError, match="cannot be shown in a container"):
        binds([("/a,b", "/c")], "")


def test_a_container_is_told_which_gpu_is_its_jobs() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_ID": "7", "SLURM_CONF": "x", "PATH": "y"}
    shown = {"APPTAINERENV_CUDA_VISIBLE_DEVICES": "1", "APPTAINERENV_SLURM_JOB_ID": "7"}
    assert shown_variables(environment) == shown


@pytest.mark.parametrize(
    ("jobs", "cores", "threads", "expected"), [(1, 8, "auto", 8), (3, 8, "auto", 2), (40, 8, "auto", 1), (3, 8, 5, 5)]
)
def test_jobs_share_the_cores(jobs: int, cores: int, threads: int | str, expected: int) -> None:
    assert share_of_cores(jobs, cores, {**SETTINGS, "threads": threads}) == expected


def test_a_training_gets_threads_by_its_length_where_runs_are_few_and_cores_are_many() -> None:
    assert [pretrain_threads(d, 4, 8, SETTINGS) for d in (2, 3, 4, 8)] == [2, 2, 4, 8]
    assert [pretrain_threads(d, 17, 8, SETTINGS) for d in (2, 8)] == [1, 1]
    assert pretrain_threads(8, 1, 64, {**SETTINGS, "device": "cuda"}) == 8
    assert pretrain_threads(8, 2, 8, {**SETTINGS, "threads": 3}) == 3


def test_a_training_on_several_nodes_is_a_task_on_each_with_its_share_of_the_gpus() -> None:
    assert placement(8, 1, gpus=1) == {"gpu": 8}
    assert placement(8, 1, gpus=0) == {"gpu": 0}
    tasks = {"mpi": "srun", "tasks": 2, "tasks_per_gpu": 0}
    assert placement(8, 2, gpus=1) == {**tasks, "gres": "gpu:4"}
    assert placement(8, 2, gpus=0) == tasks


def test_commands_say_all_settings_of_the_machine() -> None:
    assert stage_command("evaluate", SETTINGS) == (
        "exec wmse evaluate --data-root 'data sets' --preset quick --device cpu --gpu-slots 1 --channels-last true "
        "--compile auto "
    )
    assert stage_command("evaluate", {**SETTINGS, "deterministic": True}).endswith(" --deterministic ")
    assert stage_command("evaluate", {**SETTINGS, "plugins": ["my method.py"]}).endswith(" --plugin 'my method.py' ")
    assert pretrain_flags(SETTINGS) == "--checkpoint-seconds 600 --keep-checkpoints 2 "
    often = pretrain_flags({**SETTINGS, "checkpoint_epochs": 3})
    assert often == "--checkpoint-seconds 600 --checkpoint-epochs 3 --keep-checkpoints 2 "
    assert progress_flag(1, 8, SETTINGS) == ""
    assert progress_flag(4, 8, SETTINGS) == "--no-progress "


def test_the_figure_is_drawn_with_what_decides_the_rules() -> None:
    config = {"seeds": [0, 1], "device": "cpu", "results": "my results"}
    assert rule_graph_config(config, "quick") == ['preset="quick"', 'results="my results"', "seeds=[0, 1]"]
