"""What MkDocs (mkdocs.yml, `make docs`) shows besides docs/: every file of the repository that a page links to.

Every file keeps its path in the repository, so that links hold there and in the site. Code becomes a page.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/reference/README.md")
LINK = re.compile(r"\]\(([^)#\s]+)")
CODE = (".py", ".yaml", ".csv")


class Code(File):
    """A source file as a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages, with all that they link to, in place of the files of docs/."""
    found = Files([])
    own = [file for file in files if file.src_dir == config.docs_dir]
    todo = [*PAGES, *(f"docs/{file.src_uri}" for file in own)]
    for path in todo:  # grows
        if found.get_file_from_path(path):
            continue
        found.append(_file(path, config))
        if path.endswith(".md"):
            todo += _links(path)
    for file in files:
        if file not in own:  # the theme's
            found.append(file)
    return found


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Code as a page; None leaves other pages as they are."""
    file = page.file
    if not isinstance(file, Code):
        return None
    language = file.src_uri.rpartition(".")[2]
    head = "---\nsearch: { exclude: true }\nhide: [toc]\n---\n"
    return f"{head}# `{file.src_uri}`\n\n~~~~ {language}\n{file.content_string}~~~~\n"


def _links(path: str) -> Iterator[str]:
    """The files of the repository that a page links to. Whatever else it links to, MkDocs judges."""
    for target in LINK.findall((ROOT / path).read_text(encoding="utf-8")):
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (ROOT / linked).is_file():
            yield linked


def _file(path: str, config: MkDocsConfig) -> File:
    where = (path, str(ROOT), config.site_dir, False)
    return Code(*where, dest_uri=f"{path}.html") if path.endswith(CODE) else File(*where)
