"""report.html in a headless Chromium, which `make test-page` installs; where one is, `make test` has these tests too.

The page's own policy forbids scripts and addresses: whatever tries one in spite of it is an error in the console.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import ROOT
from builders.results import GRAPH, make_run, markdown_rows
from wmse.report import build_report, write_dag
from wmse.report.page import FIGURES
from wmse.runs.folder import run_folders

DRIVER = shutil.which("chromedriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not (DRIVER and CHROMIUM):
    pytest.skip("NOT TESTED: no Chromium here; `make test-page` installs one", allow_module_level=True)

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--no-first-run", "--disable-dev-shm-usage"]
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
SCREENS = {
    "desk": (DESK, "light"),
    "desk at night": (DESK, "dark"),
    "phone": (PHONE, "light"),
    "phone at night": (PHONE, "dark"),
}
ROWS = """return [...document.querySelectorAll("tr")].filter(row => row.checkVisibility() && row.offsetHeight > 9)
  .map(row => [...row.cells].map(cell => cell.textContent.trim()))"""
WIDTHS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
# Figures that take no room, and parts of them that are drawn with something that is not there.
MISSING = """return [...document.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().height < 99)
  .concat([...document.querySelectorAll("use")].filter(use => !document.querySelector(use.getAttribute("xlink:href"))))
  .map(element => element.outerHTML.slice(0, 99))"""
# Texts whose contrast with what lies behind them is below the 4.5 that WCAG asks for.
FAINT = """
const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
const light = colour => { const [r, g, b] = numbers(colour).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 }
const behind = element => { const colour = getComputedStyle(element).backgroundColor
  return numbers(colour)[3] === 0 && element.parentElement ? behind(element.parentElement) : colour }
return [...document.querySelectorAll("body *:not(svg *)")]
  .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
  .filter(element => { const pair = [light(getComputedStyle(element).color), light(behind(element))]
    return Math.max(...pair) / Math.min(...pair) < 4.5 }).map(element => element.outerHTML.slice(0, 99))"""
# Letters and axes of the figures, which must be seen on the page's background.
INK = """const all = what => [...document.querySelectorAll(what)].map(part => getComputedStyle(part))
return all("figure svg").map(style => style.fill)
  .concat(all('figure svg [style*="stroke: #000000"]').map(style => style.stroke))"""
# What the mouse finds at the last point of the first curve that tells its values.
UNDER = """const points = document.querySelector("#figure-training use:has(title)").parentElement.children
const point = points[points.length - 1]; point.scrollIntoView({block: "center", inline: "center"})
const {x, y, width, height} = point.getBoundingClientRect()
return document.elementFromPoint(x + width / 2, y + height / 2).textContent"""


class Browser:
    """A page in Chromium, by the W3C's WebDriver protocol."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        session = self.call("/session", capabilities={"alwaysMatch": wanted})
        self.address += f"/session/{session['sessionId']}"

    def close(self) -> None:
        self.call("", "DELETE")
        self.process.terminate()
        self.process.wait()

    def call(self, path: str, method: str = "POST", **body: Any) -> Any:
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, screen: dict[str, Any], scheme: str = "light") -> None:
        self.devtools("Emulation.setDeviceMetricsOverride", **screen)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("/url", url=page.as_uri())

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.call("/goog/cdp/execute", cmd=command, params=arguments)

    def run(self, script: str) -> Any:
        return self.call("/execute/sync", script=script, args=[])

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", type="browser")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the committed runs and on made ones, with all its figures, and a result that is left out."""
    folder = tmp_path_factory.mktemp("results")
    runs = run_folders(ROOT / "results/reference/cpu")
    runs += [make_run(folder / "runs", b, m) for b in ("stl10", "fashion_mnist") for m in ("wmse", "byol", "random")]
    (damaged := make_run(folder / "runs", "cifar100") / "result.json").write_text(damaged.read_text()[:-9])
    write_dag(GRAPH, {"evaluate": 5}, folder)
    build_report([*runs, damaged.parent], folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(params=SCREENS)
def opened(request: pytest.FixtureRequest, browser: Browser, results: Path) -> Browser:
    """The page on one of the screens."""
    browser.open(results / "report.html", *SCREENS[request.param])
    return browser


def test_the_console_is_silent_and_every_figure_is_there(opened: Browser) -> None:
    assert opened.console() == []
    assert opened.run("return document.querySelectorAll('figure svg').length") == len(FIGURES)
    assert opened.run(MISSING) == []


def test_every_row_of_the_tables_is_seen(opened: Browser, results: Path) -> None:
    shown = Counter(map(tuple, opened.run(ROWS)))
    wanted = [row for name in ("tables.md", "claims.md") for row in markdown_rows(results / name)]
    assert len(wanted) > 90
    assert Counter(wanted) - shown == Counter()


def test_the_page_is_never_wider_than_the_screen(opened: Browser) -> None:
    wide, screen = opened.run(WIDTHS)
    assert wide <= screen


def test_texts_and_figures_stand_out_by_day_and_by_night(opened: Browser, request: pytest.FixtureRequest) -> None:
    assert opened.run(FAINT) == []
    dark = "night" in request.node.callspec.id
    background = opened.run("return getComputedStyle(document.body).backgroundColor")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in [background, *set(opened.run(INK))]]
    assert (brightness[0] < 60) == dark
    assert all((ink > 150) == dark for ink in brightness[1:])


def test_a_point_of_a_curve_tells_its_value_under_the_mouse(opened: Browser) -> None:
    history = ROOT / "results/reference/cpu/runs/cifar10/simclr/seed0-d954890d/history.csv"
    epoch, _, _, _, loss, *_ = history.read_text().splitlines()[-1].split(",")
    assert opened.run(UNDER) == f"SimCLR, epoch {epoch}: loss {float(loss):.4g}"
