"""HTML pages that need no other file: page, sections, cards and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from xml.etree.ElementTree import Element, tostring

from mae.report.figures import element


def html_page(title: str, body: Iterable[Element]) -> bytes:
    """Make a self-contained HTML page of elements."""
    style = resources.files("mae.report").joinpath("page.css").read_text("utf-8")
    content = element("body", element("h1", title), *body)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"{tostring(content, encoding='unicode', method='html')}</html>\n"
    )
    # A file name may hold bytes that cannot be encoded; it must not prevent the page.
    return text.encode("utf-8", errors="replace")


def facts_list(facts: Iterable[tuple[str, str]]) -> Element:
    """Lay out (name, text) pairs as cards."""
    cards = (element("div", element("dt", name), element("dd", text)) for name, text in facts)
    return element("dl", *cards, class_="facts")


def section(title: str, content: Iterable[Element]) -> Iterable[Element]:
    """Put content under a title; yield nothing without content."""
    if found := list(content):
        yield element("section", element("h2", title), *found)


def html_table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Element | str]]
) -> Element:
    """Build a table; the first cell of each row is its header."""
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    )
    table = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *(element("th", text, scope="col") for text in head))),
        element("tbody", *body),
    )
    return element("div", table, class_="wide")
