"""report.html: the pages and figures of the report in one file, which needs no network and no other file.

The text is that of tables.md and claims.md, so that whatever they say stands here as well.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

from wmse.config import IDENTITY
from wmse.report.results import DEFAULTS, Run, show_value
from wmse.report.svg import for_page
from wmse.runs.folder import RunFolder

CAPTIONS = Path(__file__).parents[1] / "template/workflow/report"  # Also those of Snakemake's own report.
FIGURES = {
    "accuracy": "Accuracies",
    "training": "Training",
    "dynamics": "Accuracy against epochs and time",
    "collapse": "Signs of collapse",
    "map": "Maps of the test images",
    "time": "Time per iteration",
    "dag": "The workflow",
}


def compose_page(files: Mapping[str, str | bytes], runs: Sequence[Run], out: Path) -> str:
    """The page on `runs`, from the other files of the report by their path below the folder `out`.

    The figure of the workflow, which no run holds, is the one that lies in `out`, if it does. Raises DataError.
    """
    markdown = _Markdown()
    sections = [markdown.section(str(files[name])) for name in ("tables.md", "claims.md")]
    drawn = {name: files.get(f"plots/{name}.svg") for name in FIGURES}
    if (dag := out / "plots/dag.svg").exists():
        drawn["dag"] = dag.read_bytes()
    figures = [
        {
            "id": f"figure-{name}",
            "title": title,
            "caption": markdown.inline((CAPTIONS / f"{name}.rst").read_text(encoding="utf-8")),
            "svg": for_page(f"figure-{name}", drawn[name]),
        }
        for name, title in FIGURES.items()
        if drawn[name]
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("page.html")
    return template.render(sections=sections, figures=figures, runs=[_run(run, out) for run in runs]) + "\n"


class _Markdown:
    """Markdown as accessible HTML. No HTML and no address outside the page that stands in a text is taken for one."""

    def __init__(self) -> None:
        self.parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        self.parser.validateLink = lambda address: address.startswith("#")
        self.parser.add_render_rule("table_open", _table_open)
        self.parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
        self.taken: set[str] = set()

    def inline(self, text: str) -> str:
        """Text without blocks."""
        return self.parser.renderInline(" ".join(text.split()))

    def section(self, text: str) -> dict[str, Any]:
        """A page as a section of another: its HTML, and the level, id and text of each of its headings."""
        tokens = self.parser.parse(text)
        headings: list[dict[str, str]] = []
        for i, token in enumerate(tokens):
            if token.type.startswith("heading"):
                token.tag = f"h{int(token.tag[1]) + 1}"  # The page has a title of its own.
            match token.type:
                case "heading_open":
                    name = self._free(slug(tokens[i + 1].content))
                    headings.append({"level": token.tag, "id": name, "text": tokens[i + 1].content})
                    token.attrSet("id", name)
                case "table_open":
                    token.meta["label"] = headings[-1]["id"]
                case "th_open":
                    token.attrSet("scope", "col")
                case "tr_open" if tokens[i + 1].type == "td_open":
                    tokens[i + 1].tag = tokens[i + 3].tag = "th"
                    tokens[i + 1].attrSet("scope", "row")
                case "inline":
                    for mark, word in itertools.pairwise(token.children or ()):
                        if mark.type == "strong_open":  # verdicts and recipes, which have colours
                            mark.attrSet("class", slug(word.content))
        return {"html": self.parser.renderer.render(tokens, self.parser.options, {}), "headings": headings}

    def _free(self, name: str) -> str:
        while name in self.taken:
            name += "-1"
        self.taken.add(name)
        return name


def slug(text: str) -> str:
    """The id of a heading, as GitHub makes it: `Table 1: CIFAR-10` is `table-1-cifar-10`."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _table_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A table in a frame of its own, which scrolls where it is too wide, and which a keyboard reaches."""
    label = tokens[index].meta["label"]
    return f'<div class="frame" role="region" tabindex="0" aria-labelledby="{label}"><table>\n'


def _run(run: Run, out: Path) -> dict[str, Any]:
    """A run as the page lists it: with its parameters, and links to those of its files that there are."""
    folder = RunFolder(run.path)
    kept = {
        "result": folder.result,
        "history": folder.history,
        "log of the training": folder.pretrain_log,
        "log of the evaluation": folder.evaluate_log,
        "TensorBoard": folder.tensorboard,
    }
    paths = {name: os.path.relpath(path, out) for name, path in kept.items() if path.exists()}
    own = {k: show_value(v) for k, v in run.spec.items() if k not in IDENTITY and v != DEFAULTS.get(k)}
    departures = {
        key: f"{show_value(item['run'])} (paper: {show_value(item['paper'])})"
        for key, item in (run.differences or {}).items()
    }
    links = {name: quote(path) for name, path in paths.items()}
    return {"name": run.name, "parameters": own | departures, "links": links}
