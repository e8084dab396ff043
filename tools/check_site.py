"""Check that a built site is whole: its links lead to files and anchors, and nothing is loaded from a network.

    python tools/check_site.py build/docs           (make docs does it)

MkDocs judges the links that pages are written with; this judges what became of them, and of the API's and the theme's.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s;]+)")  # by a style sheet


class _Page(HTMLParser):
    """The anchors of a page, where it leads to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = LOADED.findall(text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        else:
            self.loads += [values[name] for name in ("src", "href", "data", "poster") if name in values]


def problems(site: Path) -> list[str]:
    """What is wrong with a site, a line for each link: `PAGE: TARGET: why`."""
    site = site.resolve()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for target in dict.fromkeys([*page.links, *page.loads]):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    found.append(f"{path}: {target}: is loaded from a network")
                continue
            base = site if parts.path.startswith("/") else path.parent
            file = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{path}: {target}: no such file")
            elif file in pages and parts.fragment and unquote(parts.fragment) not in pages[file].anchors:
                found.append(f"{path}: {target}: no such anchor")
    for path in sorted(site.rglob("*.css")):
        found += [
            f"{path}: {url}: is loaded from a network" for url in LOADED.findall(path.read_text(encoding="utf-8"))
        ]
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or f"{sys.argv[1]}: every link leads somewhere, and nothing is loaded from a network")
    sys.exit(bool(lines))
