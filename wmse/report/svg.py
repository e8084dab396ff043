"""Figures as SVG: their values under the mouse, and several of them in one page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from wmse.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG = "{http://www.w3.org/2000/svg}"
MOST_POINTS = 60  # Of a curve that tell their values; more would lie too close together to be pointed at.
TELLS, BETWEEN = "tells: ", " ¦ "
ElementTree.register_namespace("", SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def add_texts(axis: Axes, x: Iterable[float], y: Iterable[float], texts: Iterable[str]) -> None:
    """Unseen markers, large enough for a mouse, at points that tell their texts in an SVG."""
    points = list(zip(x, y, texts, strict=True))
    points = points[:: 1 + len(points) // MOST_POINTS]
    # The id is all that matplotlib hands on to the SVG; `with_texts` makes titles of it.
    if points:
        xs, ys, told = zip(*points, strict=True)
        axis.plot(xs, ys, "o", markersize=11, alpha=0, gid=TELLS + BETWEEN.join(told))


def with_texts(svg: bytes) -> bytes:
    """matplotlib's SVG with the texts of `add_texts`."""
    keeping_comments = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.fromstring(svg, keeping_comments)
    for group in root.iter(f"{SVG}g"):
        if group.get("id", "").startswith(TELLS):
            texts = group.attrib.pop("id").removeprefix(TELLS).split(BETWEEN)
            for marker, text in zip(group.iter(f"{SVG}use"), texts, strict=True):
                ElementTree.SubElement(marker, f"{SVG}title").text = text
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def for_page(name: str, svg: bytes) -> str:
    """A figure to stand inside a page, described by its text there: every id begins with the figure's, `name`.

    Raises DataError: it is no SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
        points = float(root.get("width", "").removesuffix("pt"))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{name}: is no SVG of ours ({error}); remove its file in plots/ and make it again") from None
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key.endswith("href"):
                element.set(key, value.replace("#", f"#{name}-"))
            else:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-caption"}
    root.set("style", f"min-width: {0.65 * points:.0f}pt; max-width: {1.25 * points:.0f}pt")  # letters that can be read
    return ElementTree.tostring(root, "unicode")
