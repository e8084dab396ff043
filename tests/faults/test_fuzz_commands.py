"""Whatever stands in a configuration and on a command line: a result, or one clear message."""

from __future__ import annotations

import io
import json
import math
import string
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import strategies as st

from builders import ROOT
from builders.hostile import NUMBERS, VALUES, as_json, changed, mutated, outcome
from builders.raw import put
from builders.results import GRAPH
from wmse.cli import main
from wmse.config import RunSpec, load_project, make_spec, read_yaml
from wmse.config.spec import FIELDS
from wmse.errors import LONGEST_MESSAGE, DataError, WmseError
from wmse.report import write_dag
from wmse.report.dag import direct, layers, parse_dot
from wmse.runtime import resolve

# --- configuration ----------------------------------------------------------------------------------------------------

CONFIG = {
    "preset": "cpu",
    "experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2", "wmse-4@mine"], "seeds": [0, 1]}],
    "benchmarks": ["cifar10"],
    "methods": ["wmse-2"],
    "seeds": [0],
    "parameters": {"*": {"epochs": 3, "lr_drops": [1]}, "cifar10/wmse-4": {"w_size": 128, "lr": "* 2"}},
    "variants": {"mine": {"normalize": False, "crop_scale": [0.1, 1.0]}},
    "data_root": "data",
    "results": "results",
    "download": True,
    "device": "auto",
    "threads": "auto",
    "channels_last": "auto",
    "compile": False,
    "deterministic": False,
    "container": "x.sif",
}


def usable(project: Any) -> None:
    """What the workflow does with a configuration that has been accepted."""
    for spec in project.runs:
        assert RunSpec.from_dict(json.loads(json.dumps(spec.compact()))).hash == spec.hash
        Path(project.settings["results"], spec.run).exists()


def test_fuzzed_configurations(fuzz: Any) -> None:
    def check(config: dict[Any, Any]) -> None:
        outcome(lambda: usable(load_project(config)))

    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    examples = [
        {**CONFIG, "parameters": {1: {"epochs": 3}}},
        {**CONFIG, "parameters": {"*": {2: 3}}},
        {**CONFIG, "seeds": deep},
        {**CONFIG, "results": "a\0b"},
        {**CONFIG, "results": "x" * 300},
        {**CONFIG, "data_root": "\ud800"},
        {**CONFIG, "parameters": {"*": {"lr": math.inf}}},
        {**CONFIG, "parameters": {"*": {"lr": 10**400}}},
        {**CONFIG, "parameters": {"*": {"epochs": "* " + "9" * 400}}},
        {**CONFIG, "methods": ["wmse-" + "9" * 5000]},
    ]
    fuzz(check, changed(CONFIG), few=150, many=2000, examples=examples)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}], {b}: 1}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", ["LAUGHS", "MERGES"])
def test_aliases_of_aliases_are_refused_before_they_are_written_out(
    tmp_path: Path, text: str, counts: Counter[str]
) -> None:
    counts["inputs"] += 2
    path = put(tmp_path / "config.yaml", globals()[text])
    message = str(outcome(lambda: read_yaml(path)))
    assert "config.yaml: not valid YAML: more than 100,000 values" in message
    as_snakemake_reads_it: Any = [0] * 9
    for _ in range(9):
        as_snakemake_reads_it = [as_snakemake_reads_it] * 9
    message = str(outcome(lambda: load_project({"seeds": as_snakemake_reads_it})))
    assert "configuration: more than 100,000 values" in message


def test_fuzzed_parameters(fuzz: Any) -> None:
    keys = st.sampled_from([name for name in FIELDS if name != "benchmark"])

    def check(values: dict[str, Any]) -> None:
        result = outcome(lambda: make_spec("cifar10/wmse-4", 0, [values]))
        if isinstance(result, RunSpec):
            assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()

    fuzz(check, st.dictionaries(keys, st.one_of(VALUES, NUMBERS), max_size=3), few=150, many=2000)


TAGS = [
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "2001-99-99",
    "!!binary é",
    "!!python/object/apply:os.system [x]",
    "!!set {a}",
]


def test_fuzzed_yaml(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "config.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: read_yaml(path), path.name)
        if not isinstance(result, WmseError):
            outcome(lambda: load_project(result))

    good = yaml.safe_dump({key: value for key, value in CONFIG.items() if key != "parameters"}).encode()
    bombs = [
        LAUGHS,
        MERGES,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "a: " + "9" * 5000,
        "\0",
    ]
    examples = [
        text.encode() for text in [*bombs, *(f"a: {tag}" for tag in TAGS), "? [a]\n: b", "1: 2", "? {a: b}\n: c"]
    ]
    fuzz(check, mutated(good, (ROOT / "config.yaml").read_bytes()), few=100, many=1000, examples=[*examples, b"\xff"])


# --- command line -----------------------------------------------------------------------------------------------------

FLAGS = [
    *("--checkpoint-seconds", "--checkpoint-epochs", "--keep-checkpoints"),
    *("--root", "--preset", "--data-root", "--device", "--threads", "--channels-last", "--compile", "--deterministic"),
    *("--watts", "--seconds", "--json", "--spec", "--out", "--log", "--only", "--jobs", "--results", "--quiet"),
    *("--no-download", "--no-progress", "--help", "--version"),
]
COMMANDS = [
    *("prepare", "init", "runs", "estimate", "pretrain", "evaluate", "report", "dag", "selfcheck", "verify"),
    *("compare", "completion", "doctor"),
]
ARGUMENTS = st.one_of(
    st.sampled_from(
        [".", "nowhere", "file", "folder", "/dev/full", "cifar10", "cifar10/wmse-2/seed0", "cpu", "quick", "tables"]
    ),
    st.sampled_from(
        ["0", "-1", "1", "nan", "inf", "1e9", "9" * 5000, "auto", "cuda:9", "{}", "[]", "[" * 100_000, '{"a": 1}']
    ),
    st.text(string.printable, max_size=5),
    st.sampled_from(["é", "\udcff", "\u2028", "-", "--", "=", "x" * 300]),
)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in a folder of its own, without network and without the heavy work."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise DataError("the work itself is left out")

    for name in ("build.download", "build.write_arrays", "build.write_listing", "imagenet_mini._write_jpegs"):
        monkeypatch.setattr(f"wmse.datasets.{name}", refuse)
    monkeypatch.setattr("wmse.estimate.estimate_runs", refuse)
    monkeypatch.setattr("wmse.selfcheck.selfcheck", lambda *arguments: 0)
    monkeypatch.setattr("wmse.doctor.examine", lambda *arguments: [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.yaml").symlink_to(ROOT / "config.yaml")

    def check(arguments: list[str]) -> None:
        def act() -> int | None:
            try:
                return main(arguments)
            except SystemExit as end:
                return end.code

        status = outcome(act)
        captured = capsys.readouterr()
        assert status in (0, 1, 2)
        assert "Traceback" not in captured.err
        assert captured.err.count("error:") == (status != 0)
        assert len(captured.err) <= LONGEST_MESSAGE + 4 * sum(map(len, arguments))

    return check


def test_fuzzed_command_lines(commands: Any, fuzz: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    option = st.tuples(st.sampled_from(FLAGS), ARGUMENTS).map(list)
    rest = st.lists(
        st.one_of(option, st.sampled_from(FLAGS).map(lambda flag: [flag]), ARGUMENTS.map(lambda a: [a])), max_size=4
    )
    lines = st.tuples(st.sampled_from([*COMMANDS, "", "x"]), rest).map(
        lambda line: [line[0], *(word for words in line[1] for word in words)]
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GRAPH.encode())))
    examples = [
        ["prepare", "cifar11", "--log", "/dev/full"],
        ["prepare", "cifar11", "--log", "folder"],
        ["prepare", "fashion_mnist", "--data-root", "\udcff"],
        ["runs", "--root", "\udcff", "--log", "log"],
        ["estimate", "--device", "xyz"],
        ["estimate", "--threads", "1000000000"],
        ["estimate", "--threads", "-1"],
        ["estimate", "--seconds", "nan"],
        ["estimate", "--device", "cuda:99"],
        ["pretrain", "--spec", "[" * 100_000],
    ]
    fuzz(commands, lines, few=150, many=2000, examples=examples)


def test_fuzzed_specifications(commands: Any, fuzz: Any) -> None:
    good = make_spec("cifar10/wmse-4", 0).to_dict()
    outside = {"benchmark": "cifar10", "method": "wmse", "variant": "../../../../outside"}
    specs = st.one_of(changed(good), st.dictionaries(st.sampled_from(list(good)), VALUES, max_size=4))
    examples = [outside, {"benchmark": ["x"], "method": {}}, {"benchmark": "x" * 10_000, "method": "wmse"}]
    fuzz(lambda spec: commands(["pretrain", "--spec", as_json(spec)]), specs, few=100, many=1000, examples=examples)


@pytest.mark.parametrize("device", ["xyz", "meta", "cpu:3", "cuda:", "cuda:9999", "mps", "", "cuda", "\0"])
def test_devices_that_are_not_there_are_one_message(device: str, counts: Counter[str]) -> None:
    counts["inputs"] += 1
    if not torch.cuda.is_available() or device != "cuda":
        assert isinstance(outcome(lambda: resolve(device)), WmseError)


def test_fuzzed_rule_graphs(tmp_path: Path, fuzz: Any, commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(content: bytes) -> None:
        def act() -> None:
            needs = parse_dot(content.decode("utf-8", "replace"))
            assert set(layers(needs)) == set(needs)
            assert all(direct(needs)[rule] <= needs[rule] for rule in needs)

        outcome(act)

    many = "".join(f'{i}[label = "r{i}"]\n' for i in range(45))
    dense = many + "".join(f"{i} -> {j}\n" for j in range(45) for i in range(j))
    circle = GRAPH.replace("3 -> 0", "3 -> 0\n0 -> 2")
    examples = [circle, GRAPH.replace("3 -> 0", "3 -> 9"), GRAPH.replace("3 -> 0", "0 -> 0"), dense, many * 2, ""]
    fuzz(check, mutated(GRAPH.encode()), few=100, many=1000, examples=[text.encode() for text in examples])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff" + GRAPH.encode())))
    commands(["dag"])
    assert (tmp_path / "results/plots/dag.svg").exists()
    jobs = st.dictionaries(st.sampled_from(["all", "tables", "x"]), VALUES, max_size=2)
    labels = GRAPH.replace('"tables"', '"$x^$"')
    fuzz(lambda jobs: outcome(lambda: write_dag(labels, jobs, tmp_path)), jobs, few=3, many=30)
