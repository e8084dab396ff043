"""report.html without a browser: what it holds, where it points, and that no text from a file becomes a part of it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from builders import ROOT
from builders.results import GRAPH, edit, make_run, markdown_rows
from wmse.errors import DataError
from wmse.report import build_report, write_dag
from wmse.report.page import FIGURES
from wmse.runs.folder import RunFolder, run_folders

HOSTILE = (
    "<script>alert(1)</script> <b> & [link](https://example.org) ![image](https://example.org/x.png) <https://a.b>"
)
VOID = {"meta", "link", "br", "hr", "input", "img"}


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), its texts by the id of the element around, and its rows of cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[tuple[str, ...]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: Counter[str] = Counter()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attributes}
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append((tag, found.get("id", "")))
        if tag == "tr":
            self.rows.append(())
        elif tag in ("td", "th"):
            self.rows[-1] += ("",)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            self.texts[name] += len(data.strip())
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.rows[-1] = (*self.rows[-1][:-1], self.rows[-1][-1] + data)

    def all(self, *keys: str) -> list[str]:
        """The values of attributes."""
        return [found[key] for _, found in self.elements for key in keys if key in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the committed runs and on made ones beside it, one of them with a log and TensorBoard's events."""
    folder = tmp_path_factory.mktemp("results")
    runs = run_folders(ROOT / "results/reference/cpu")
    runs += [make_run(folder / "runs", "stl10", "wmse", differences={}), make_run(folder / "runs", "stl10", "random")]
    RunFolder(runs[-2]).tensorboard.mkdir()
    RunFolder(runs[-2]).pretrain_log.write_text("epoch 1\n")
    write_dag(GRAPH, {}, folder)
    build_report(runs, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report.html")


def test_every_row_of_the_tables_and_claims_is_on_the_page(folder: Path, page: Page) -> None:
    wanted = [row for name in ("tables.md", "claims.md") for row in markdown_rows(folder / name)]
    assert len(wanted) > 90
    assert Counter(wanted) - Counter(page.rows) == Counter()


def test_the_page_needs_nothing_outside_of_it(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "embed", "foreignobject"}
    assert page.all("src", "srcset", "data", "action", "onload", "onclick") == []
    assert "@import" not in page.text
    targets = re.findall(r"url\((.*?)\)", page.text) + page.all("xlink:href")
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert [href for href in page.all("href") if "//" in href or href.startswith(("/", "javascript"))] == []


def test_every_id_is_one_and_every_reference_has_its_target(folder: Path, page: Page) -> None:
    ids = Counter(page.all("id"))
    assert [name for name, count in ids.items() if count > 1 or not name or " " in name] == []
    inside = [href[1:] for href in page.all("href", "xlink:href") if href.startswith("#")]
    inside += re.findall(r"url\(#(.*?)\)", page.text)
    labels = " ".join(page.all("aria-labelledby")).split()
    assert [name for name in [*inside, *labels] if name not in ids] == []
    assert all(page.texts[name] for name in labels)
    files = [href for href in page.all("href") if not href.startswith(("#", "data:"))]
    assert [href for href in files if not (folder / unquote(href)).exists()] == []
    assert {Path(href).name for href in files} == {"result.json", "history.csv", "pretrain.log", "tensorboard"}


def test_headings_tables_and_figures_have_what_a_screen_reader_needs(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    heads = [found.get("scope") for tag, found in page.elements if tag == "th"]
    assert set(heads) == {"col", "row"}
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert len([found for _, found in page.elements if found.get("role") == "region" and "tabindex" in found]) >= tables
    figures = [found for tag, found in page.elements if tag == "svg"]
    assert len(figures) == len(FIGURES)
    assert all(found["role"] == "img" and len(found["aria-labelledby"].split()) == 2 for found in figures)
    assert ("html", {"lang": "en"}) in page.elements


def test_curves_tell_their_values(page: Page) -> None:
    history = ROOT / "results/reference/cpu/runs/cifar10/byol/seed0-a079e6b2/history.csv"
    for line in history.read_text().splitlines()[1:]:
        epoch, _, _, _, loss, *_ = line.split(",")
        assert f"<title>BYOL, epoch {epoch}: loss {float(loss):.4g}</title>" in page.text


def test_parameters_stand_beside_those_of_the_paper(page: Page) -> None:
    (row,) = [row for row in page.rows if len(row) == 3 and row[0].startswith("cifar10/byol")]
    assert "epochs10 (paper: 1000)" in row[2]
    assert "eval_every2" in row[2]


def test_no_text_of_a_file_becomes_a_part_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "cifar10")
    for key in ("provenance.hardware.cpu", "preset", "provenance.commit"):
        edit(run, key, HOSTILE)
    edit(run, "paper_differences", {HOSTILE: {"run": HOSTILE, "paper": 1}})
    build_report([run], tmp_path)
    page = Page(tmp_path / "report.html")
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b"}
    assert "example.org" not in " ".join(page.all("href", "src"))
    assert [row for row in page.rows if HOSTILE in row]
    assert [row for row in page.rows if len(row) == 3 and f"{HOSTILE}{HOSTILE} (paper: 1)" in row[2]]


def test_what_is_left_out_is_said_on_the_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", seed=seed) for seed in range(2)]
    (runs[0] / "result.json").write_text("{}")
    build_report(runs, tmp_path)
    assert "1 result is left out of this page" in (tmp_path / "report.html").read_text()


def test_without_runs_the_page_shows_the_papers_tables(tmp_path: Path) -> None:
    build_report([], tmp_path, only="page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert ("SimCLR", "—", "— / 1000", "91.80", "not run", "—", "88.42", "not run", "—") in Page(
        tmp_path / "report.html"
    ).rows


def test_a_figure_of_the_workflow_that_is_none_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for text in ("<svg", "<svg/>"):
        (tmp_path / "plots/dag.svg").write_text(text)
        with pytest.raises(DataError, match="figure-dag"):
            build_report([], tmp_path, only="page")
