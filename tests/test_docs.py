"""The documentation's worked examples, run as they stand, and its references to files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import wmse
from builders import ROOT
from builders.data import make_images
from builders.runs import TINY
from builders.workflow import PATIENT, environment
from wmse.config import baselines, experiments, make_spec

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "config/README.md",
    ROOT / "results/reference/README.md",
]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [page for entry in nav for page in entry.values()]
    assert {str(page.relative_to(ROOT)) for page in PAGES} <= set(listed)
    assert [page for page in listed if not (ROOT / page).is_file()] == []


def test_the_check_of_the_site_finds_what_leads_nowhere_and_what_a_network_has(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "a").mkdir(parents=True)
    links = ("a/b.html#here", "a/b.html#there", "c.html", "https://example.org")
    loads = '<script src="https://example.org/x.js"></script><img src="data:,"><link href="//example.org/f.css">'
    (site / "index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links) + loads)
    (site / "a/b.html").write_text('<h1 id="here"><a href="../index.html#">x</a></h1>')
    (site / "font.css").write_text("@font-face { src: url(https://example.org/f.woff) }")
    done = subprocess.run([sys.executable, ROOT / "tools/check_site.py", site], capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.removeprefix(f"{site.resolve()}/") for line in done.stdout.splitlines()] == [
        "index.html: a/b.html#there: no such anchor",
        "index.html: c.html: no such file",
        "index.html: https://example.org/x.js: is loaded from a network",
        "index.html: //example.org/f.css: is loaded from a network",
        "font.css: https://example.org/f.woff: is loaded from a network",
    ]


def test_the_worked_examples_of_plugins_run_outside_the_package(tmp_path: Path) -> None:
    page = ROOT / "docs/extending.md"
    for block in (*blocks(page, "python"), *blocks(page, "yaml")):
        name = re.match(r"# (\w+\.(?:py|yaml))\n", block)
        assert name, block
        (tmp_path / name[1]).write_text(block)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    fast = {"device": "cpu", "channels_last": False, "parameters": {"*": {**TINY, "epochs": 2}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, **fast}))
    raw = tmp_path / "data/my_images/raw/my_images"
    raw.mkdir(parents=True)
    train, test = make_images(2_000, 0), make_images(400, 1)
    labels = {"train_y": np.arange(2_000) % 4, "test_y": np.arange(400) % 4}
    np.savez(raw / "images.npz", train_x=train.images, test_x=test.images, **labels)

    (commands,) = blocks(page, "sh")
    commands = commands.replace("snakemake", f"snakemake --snakefile {ROOT}/workflow/Snakefile")
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env=environment(**PATIENT),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tables = (tmp_path / "results/tables.md").read_text()
    for words in ("My images", "Barlow Twins", "Ablation: scale of the crops", "small-crops", "large-crops"):
        assert words in tables
    results = {
        path.parts[-3]: json.loads(path.read_text()) for path in (tmp_path / "results/runs").rglob("result.json")
    }
    own = {method: [text.partition(":")[0] for text in result["spec"]["outside"]] for method, result in results.items()}
    assert own == {
        "barlow_twins": ["barlow_twins.py", "my_images.py"],
        "wmse-2": ["my_images.py"],
        "wmse-2@cutout": ["cutout.py", "my_images.py"],
        "wmse-2@small-crops": ["my_images.py"],
        "wmse-2@large-crops": ["my_images.py"],
        "random": ["my_images.py"],
    }
    digest = hashlib.sha256((tmp_path / "barlow_twins.py").read_bytes()).hexdigest()
    assert results["barlow_twins"]["provenance"]["plugins"]["barlow_twins.py"] == f"sha256:{digest}"


def run_blocks(folder: Path, language: str, *texts: str) -> str:
    """What blocks of a page print, run one after the other in a folder."""
    program = {"python": [sys.executable], "sh": ["bash", "-e"]}[language]
    own = environment(PYTHONPATH=str(ROOT), **PATIENT)
    done = subprocess.run(
        [*program, "-c", "\n".join(texts)], cwd=folder, env=own, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    page = ROOT / "docs/tutorial.md"
    printed = run_blocks(tmp_path, "python", *(block for block in blocks(page, "python") if "lightly" not in block))
    for words in (
        "(10000, 3, 32, 32) (2000, 3, 32, 32)",
        "epoch 2/2",
        "Preprocessing(resize=16, size=16",
        "nearest to",
    ):
        assert words in printed
    accuracy = re.search(r"5-nn: ([0-9.]+) %", printed)
    assert accuracy
    assert float(accuracy[1]) > 40  # ten classes
    printed = run_blocks(tmp_path, "sh", *blocks(page, "sh"))
    assert "the features differ by" in printed
    made = (
        "photos.npz",
        "neighbours/neighbours.png",
        "neighbours/map.png",
        "exported/README.md",
        "runs/first/history.csv",
    )
    assert [name for name in made if not (tmp_path / name).exists()] == []


def test_a_run_is_passed_on_as_the_page_says(tmp_path: Path) -> None:
    page = ROOT / "docs/bundles.md"
    cell = {"experiments": [{"benchmarks": ["fashion_mnist"], "methods": ["wmse-2"]}]}
    fast = {"*": {**TINY, "epochs": 1, "lr_drops": [], "batch_size": 512, "probe_batch_size": 1000}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**cell, "parameters": fast}))
    run = "fashion_mnist/wmse-2/seed0"
    by_hand = f"wmse prepare fashion_mnist && wmse pretrain {run} && wmse evaluate {run}"
    assert "linear_top1" in run_blocks(tmp_path, "sh", by_hand)
    printed = run_blocks(tmp_path, "sh", *blocks(page, "sh"), f"ls results/runs/{run}-*", f"wmse pretrain {run}")
    listed = set(re.findall(r"[a-z]+\.(?:json|csv|safetensors)", page.read_text())) - {"bundle.json", "imported.json"}
    assert [name for name in listed if name not in printed] == []
    for words in (
        "wrote wmse-2.tar.gz: bundle sha256:",
        "imported from wmse-2.tar.gz",
        "no problem in",
        "trained already",
    ):
        assert words in printed
    assert re.search(r"wmse-2/seed0-\w{8} after 19 steps", run_blocks(tmp_path, "python", *blocks(page, "python")))


def test_the_loss_trains_a_model_of_lightly(tmp_path: Path) -> None:
    for package in ("lightly", "pytorch_lightning"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra 'bench' has it")
    (block,) = (block for block in blocks(ROOT / "docs/tutorial.md", "python") if "lightly" in block)
    ((steps, loss),) = re.findall(r"([0-9]+) steps, loss ([0-9.]+)", run_blocks(tmp_path, "python", block))
    assert int(steps) == 2
    assert 0.5 < float(loss) < 3  # of unit vectors: about 2 where the views have nothing in common


def test_the_page_on_the_api_has_the_names_that_stay() -> None:
    documented = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert {f"wmse.{name}" for name in wmse.__all__} - {"wmse.__version__"} <= set(documented)


def test_the_recipes_of_the_page_on_numbers_are_those_of_the_runs() -> None:
    def both(name: str) -> str:
        return " / ".join(dict.fromkeys(f"{getattr(spec, name):g}" for spec in (two, four)))

    rows = re.findall(r"^\| `(\w+)` \| (resnet.*) \|$", (ROOT / "docs/numbers.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for benchmark, row in rows:
        two, four = (make_spec(f"{benchmark}/wmse-{d}", 0) for d in (2, 4))
        names = ("epochs", "lr", "batch_size", "embedding", "w_size", "w_iter", "view_size")
        assert row.split(" | ") == [two.arch, *map(both, names)]


def test_the_page_on_numbers_lists_the_runs_of_every_experiment() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|", (ROOT / "docs/numbers.md").read_text(), re.MULTILINE)
    listed = {name: re.findall(r"`([^`]+)`", cell) for name, cell in rows}
    trained = {name: [m for m in block["methods"] if m not in baselines()] for name, block in experiments().items()}
    assert listed == trained


def test_the_page_on_numbers_computes_what_the_tables_say(tmp_path: Path) -> None:
    page = ROOT / "docs/numbers.md"
    (tmp_path / "results").mkdir()
    for name in ("results/reference", "workflow", "config.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (block,) = blocks(page, "python")
    printed = run_blocks(tmp_path, "python", block).strip()
    assert printed in block
    assert printed in (ROOT / "results/reference/cpu/tables.md").read_text()
    run_blocks(tmp_path, "sh", *blocks(page, "sh"))


def test_the_tutorial_lists_the_names_that_stay() -> None:
    listed = set(re.findall(r"^\| `wmse\.(\w+)", (ROOT / "docs/tutorial.md").read_text(), re.MULTILINE))
    assert listed == set(wmse.__all__) - {"__version__"}


def test_the_page_on_the_configuration_has_every_key_with_its_default() -> None:
    schema = yaml.safe_load((ROOT / "wmse/config/config.schema.yaml").read_text())
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "config/README.md").read_text(), re.MULTILINE)
    listed = {key: yaml.safe_load(default.strip("`")) for key, default in rows}
    defaults = {key: about.get("default", "the preset's") for key, about in schema["properties"].items()}
    assert listed == defaults


def test_the_workflow_catalog_is_told_what_there_is() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["report"] is True
    assert usage["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda"}
    assert (ROOT / "workflow/Snakefile").is_file()
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
