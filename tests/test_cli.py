"""The command line: what it prints, its exit status, and that errors are one message without a traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import ROOT
from builders.runs import TINY, make_job, make_trainer, tiny_spec
from wmse.cli import main
from wmse.config.spec import FIELDS
from wmse.datasets import ArrayDataset
from wmse.errors import STOPPED_EXIT
from wmse.locks import exclusive_lock
from wmse.methods import StepOutput
from wmse.runs.evaluate import evaluate
from wmse.runs.folder import RunFolder
from wmse.runs.state import RunState
from wmse.training import Trainer, pretrain


def wmse(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wmse", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_runs_lists_the_active_configuration() -> None:
    done = wmse("runs", "--preset", "quick")
    assert done.returncode == 0
    runs = [line.split()[0].rsplit("-", 1)[0] for line in done.stdout.splitlines()]
    for label in ("simclr", "byol", "wmse-2", "wmse-4", "wmse-2@no-whitening", "random", "pixels"):
        assert f"garments/{label}/seed0" in runs
    assert len(runs) == len(set(runs))


def test_runs_shows_how_far_each_of_them_is(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = {"benchmarks": ["cifar10"], "methods": ["wmse-2", "wmse-4", "random", "pixels"]}
    config = {"preset": "paper", "experiments": [block], "parameters": {"*": TINY}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    trained, stopped, done, failed = (tiny_spec(label) for label in ("wmse-2", "wmse-4", "random", "pixels"))
    folders = {spec: RunFolder.of(tmp_path / "results", spec.run) for spec in (trained, stopped, done, failed)}

    def states() -> list[str]:
        assert main(["runs", "--root", str(tmp_path)]) == 0
        return [line.partition("  ")[2].strip() for line in capsys.readouterr().out.splitlines()]

    assert states() == ["not started"] * 4
    pretrain(make_job(trained, data, folders[trained].path))
    make_trainer(stopped, data, folders[stopped].path).run()  # all but the record that makes it a finished one
    evaluate(make_job(done, data, folders[done].path))
    folders[failed].path.mkdir(parents=True)
    folders[failed].evaluate_log.write_text("wmse: error: no data: run `wmse prepare cifar10`\n")
    metrics = json.loads(folders[done].result.read_text())["metrics"]
    finished = f"finished: linear top-1 {metrics['linear_top1']:.2f} %, 5-nn {metrics['knn5_top1']:.2f} %"
    assert states() == [
        "trained, to be evaluated",
        "stopped at step 9 of 9",
        finished,
        "failed: no data: run `wmse prepare cifar10`",
    ]
    with exclusive_lock(folders[stopped].lock, "wmse pretrain"):
        assert re.fullmatch(r"training at step 9 of 9, 0:00:0\d left", states()[1])
    with exclusive_lock(folders[done].lock, "wmse evaluate"):
        assert states()[2] == "evaluating"
    assert main(["runs", "--root", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["run"], row["state"]) for row in rows] == [
        (trained.run, "trained"),
        (stopped.run, "stopped"),
        (done.run, "done"),
        (failed.run, "failed"),
    ]
    assert rows[2]["metrics"] == {name: value for name, value in metrics.items() if value is not None}
    assert {name: rows[0][name] for name in trained.to_dict()} == trained.to_dict()


def test_a_state_hides_no_parameter_of_a_run() -> None:
    assert {field.name for field in dataclasses.fields(RunState)} & set(FIELDS) == {"epochs"}  # the same in both


def test_what_looks_speaks_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, results = str(tmp_path / "data"), tmp_path / "results"

    def answer(status: int, *arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    places = ["--data-root", data, "--results", str(results)]
    checks = answer(0, "selfcheck", *places)["checks"]
    assert all(check["passed"] for check in checks)
    assert answer(0, "verify", *places) == {"checked": {}, "problems": []}
    assert main(["prepare", "fashion_mnist", "--data-root", data]) == 0
    (tmp_path / "data/fashion_mnist/prepared/train-labels.npy").write_bytes(b"")
    results.write_text("a file")
    capsys.readouterr()
    found = answer(1, "verify", *places)
    assert found["checked"] == {"raw data": 1, "prepared data": 1}
    assert "train-labels.npy" in found["problems"][0]
    failed = [check["name"] for check in answer(1, "selfcheck", *places)["checks"] if not check["passed"]]
    assert failed == ["results"]
    look = answer(0, "watch", "--once", "--root", str(ROOT))
    assert look["preset"] == "quick"
    assert {"run", "state", "step", "metrics"} <= look["runs"][0].keys()


def test_help_and_light_commands_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom wmse.cli import main\nmain(['runs'])\nassert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_prepare_pretrain_evaluate_and_report_by_hand(tmp_path: Path) -> None:
    data, out, log = str(tmp_path / "data"), tmp_path / "results", tmp_path / "log.txt"
    spec = tiny_spec("wmse-2", benchmark="fashion_mnist", epochs=1, lr_drops=[], batch_size=512)
    run = out / "runs" / spec.run
    common = ["--spec", json.dumps(spec.compact()), "--data-root", data, "--out", str(run), "--threads", "1"]
    assert main(["prepare", "fashion_mnist", "--data-root", data, "--log", str(log)]) == 0
    assert main(["pretrain", *common, "--log", str(log)]) == 0
    assert main(["evaluate", *common, "--log", str(log)]) == 0
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert "sha256:" in log.read_text()
    assert "epoch 1/1" in log.read_text()
    accuracy = json.loads((run / "result.json").read_text())["metrics"]["knn5_top1"]
    assert accuracy > 20  # ten classes
    assert f"{accuracy:.2f}" in (out / "tables.md").read_text()
    assert "not tested at this budget" in (out / "claims.md").read_text()
    plots = {path.stem for path in (out / "plots").glob("*.png")}
    assert plots == {"training", "dynamics", "accuracy", "collapse", "time", "map"}


def test_a_stopped_training_exits_with_75_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(tmp_path / "data"), tmp_path / "run"
    spec = tiny_spec("wmse-2", benchmark="fashion_mnist", epochs=1, lr_drops=[], batch_size=1024)
    command = ["pretrain", "--spec", json.dumps(spec.compact()), "--data-root", data, "--out", str(run)]
    assert main(["prepare", "fashion_mnist", "--data-root", data]) == 0
    step = Trainer.step

    def signalled(trainer: Trainer, *index: torch.Tensor) -> StepOutput:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *index)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", signalled)
        assert main([*command, "--threads", "1"]) == STOPPED_EXIT == 75
    assert "stopped by SIGTERM after step 1; the same command continues" in capsys.readouterr().out
    assert main([*command, "--threads", "1", "--checkpoint-epochs", "1", "--keep-checkpoints", "1"]) == 0
    assert "at step 1 of 9" in capsys.readouterr().out
    assert len(list((run / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("option", ["--checkpoint-seconds=0", "--checkpoint-epochs=0", "--keep-checkpoints=no"])
def test_wrong_arguments_exit_with_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", "cifar10/wmse-2/seed0", option])
    assert caught.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "cifar11"], ["unknown benchmark 'cifar11'", "cifar10"]),
        (["prepare", "cifar10", "--no-download", "--data-root", "nowhere"], ["cifar-10-python.tar.gz", "nowhere"]),
        (["prepare", "imagenet", "--data-root", "nowhere"], ["imagenet", "train"]),
        (["pretrain"], ["wmse runs"]),
        (["pretrain", "cifar10/wmse-9/seed0"], ["unknown run", "garments/wmse-4/seed0"]),
        (["pretrain", "garments/random/seed0"], ["nothing to train", "wmse evaluate garments/random/seed0"]),
        (["pretrain", "--spec", "{"], ["--spec", "not valid JSON"]),
        (["pretrain", "--spec", "[]"], ["--spec", "JSON object"]),
        (["pretrain", "--spec", '{"benchmark": "cifar10", "method": "wmse", "w_size": 100}'], ["multiple of w_size"]),
        (["pretrain", "garments/wmse-4/seed0", "--data-root", "nowhere"], ["wmse prepare garments"]),
        (["runs", "--preset", "fast"], ["unknown preset 'fast'", "quick"]),
        (["runs", "--root", "nowhere"], ["nowhere/config.yaml", "wmse init", "--root"]),
        (["evaluate", "garments/wmse-4/seed0", "--data-root", "nowhere"], ["wmse prepare garments"]),
        (["report", "nowhere"], ["nowhere"]),
        (["compare", "garments/wmse-4/seed0", "garments/wmse-5/seed0"], ["unknown run", "wmse runs --preset NAME"]),
        (["doctor", "--preset", "fast"], ["unknown preset 'fast'"]),
    ],
)
def test_bad_input_is_one_message_and_a_failure(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    arguments = [str(tmp_path / "nowhere") if word == "nowhere" else word for word in arguments]
    done = wmse(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("wmse: error:") == 1
    assert [word for word in words if word not in done.stderr] == []


def test_a_run_that_is_not_there_yet_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("preset: quick")
    assert main(["export", "garments/wmse-4/seed0", "--root", str(tmp_path)]) == 1
    assert "has not been trained: run `wmse pretrain garments/wmse-4/seed0` first" in capsys.readouterr().err


def test_damaged_data_name_the_command_to_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "cifar10/raw/cifar-10-batches-py"
    raw.mkdir(parents=True)
    assert main(["prepare", "cifar10", "--data-root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"{raw}/data_batch_1: this file of the official folder is missing" in message
    assert message.endswith("Once that is put right, run `wmse prepare cifar10` again\n")


def test_an_unwritable_output_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = wmse("report", "--out", str(tmp_path / "file"))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wmse.datasets.prepare", interrupted)
    assert main(["prepare", "cifar10"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_name_that_is_no_text_can_be_printed_and_logged(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xff"
    done = subprocess.run(
        [sys.executable, "-m", "wmse", "prepare", "fashion_mnist", "--data-root", place, "--log", place + b"/log"],
        cwd=ROOT,
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"fashion_mnist: ready in" in done.stdout
    assert b"fashion_mnist: ready in" in Path(os.fsdecode(place), "log").read_bytes()


@pytest.mark.parametrize("log", ["/dev/full", "."])
def test_a_log_that_cannot_be_written_does_not_hide_the_error(log: str) -> None:
    done = wmse("prepare", "cifar11", "--log", log)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("wmse: error: unknown benchmark 'cifar11'") == 1


def test_every_line_of_output_is_in_the_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wmse.estimate.estimate_runs", lambda *arguments: [])
    for number, command in enumerate((["runs"], ["runs", "--json"], ["estimate", "--json", "--watts", "9"])):
        log = tmp_path / f"log{number}"
        assert main([*command, "--root", str(ROOT), "--log", str(log)]) == 0
        printed = capsys.readouterr().out
        assert printed
        assert log.read_text() == printed


def test_init_writes_a_folder_to_work_in_and_never_over_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new")]) == 0
    assert f"{tmp_path}/new/config.yaml and {tmp_path}/new/workflow" in capsys.readouterr().out
    assert main(["runs", "--root", str(tmp_path / "new")]) == 0
    (tmp_path / "config.yaml").write_text("mine")
    for folder in ("new", "."):
        assert main(["init", str(tmp_path / folder)]) == 1
        assert "config.yaml: exists already and stays as it is; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "mine"
    assert not (tmp_path / "workflow").exists()
