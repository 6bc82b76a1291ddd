"""Confusion matrix of a classifier, as an image and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.evaluation.metrics import class_rows
from mae.report.figures import element, image_element
from mae.report.html import facts_list, html_page, html_table, section
from mae.report.mistakes import WrongImage

Counts = NDArray[np.int64]
"""Confusion matrix K K, see `Predictions.confusion`."""

EDGE = 600  # pixels; larger if there are more classes than that
LIGHT, DARK = (247, 246, 243), (11, 66, 120)  # colours of no image, and of all images of a class
SCALE = (0.0, 0.02, 0.1, 0.3, 0.6, 1.0)  # fractions shown beside the matrix
MOST_NAMED = 24  # classes of a matrix with names and numbers
MOST_FREQUENT = 20


class Mistake(NamedTuple):
    """One class mistaken for another."""

    name: str
    taken_for: str
    times: int
    share: float
    """Fraction of the images of the class, 0 to 1."""


def confusion_image(counts: Counts) -> Image.Image:
    """Draw the confusion matrix as a square of cells, one row per class.

    Args:
        counts: K K, see `Predictions.confusion`.
    """
    sizes = counts.sum(axis=1, keepdims=True)
    fractions = np.sqrt(counts / np.maximum(1, sizes))[..., None]  # K K 1
    pixels = np.asarray(LIGHT) + fractions * (np.asarray(DARK) - np.asarray(LIGHT))
    scale = max(1, EDGE // len(counts))
    cells = pixels.round().astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(cells)


def worst_mistakes(counts: Counts, names: Sequence[str], *, most: int) -> list[Mistake]:
    """Return the `most` most frequent confusions; ties in the order of the classes."""
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    sizes, found = counts.sum(axis=1), []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist():
        row, column = divmod(cell, len(counts))
        if times := int(wrong[row, column]):
            found.append(Mistake(names[row], names[column], times, times / int(sizes[row])))
    return found


def confusion_figure(counts: Counts, names: Sequence[str]) -> Element:
    """Lay out the confusion matrix as an HTML figure with its scale.

    Up to `MOST_NAMED` classes, each row and column has its name and each cell its number; more
    are drawn as an image, in the order of the table of classes.

    Args:
        counts: K K, see `Predictions.confusion`.
        names: names of the K classes.
    """
    if len(names) > MOST_NAMED:
        drawn = image_element(confusion_image(counts), "confusion of classes")
        words = "Rows: true classes; columns: predicted classes; both in the order of the table."
        return element("figure", drawn, _scale(words), class_="strip")
    head = (element("th", element("span", name), scope="col") for name in names)
    rows = [element("tr", element("th", "true, predicted", scope="col"), *head)]
    for name, row in zip(names, counts.tolist(), strict=True):
        images = max(1, sum(row))
        cells = (element("td", f"{n:,}", style=_colours(n / images)) for n in row)
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    table = element("div", element("table", *rows, class_="confusion"), class_="wide")
    return element("figure", table, _scale("Rows: true classes; columns: predicted classes."))


def _scale(words: str) -> Element:
    """Describe the colours of the confusion matrix."""
    cells = (element("span", f"{s:.0%}", style=_colours(s), class_="swatch") for s in SCALE)
    text = f"{words} Colour: fraction of the images of the true class, "
    return element("figcaption", text, *cells)


def _colours(share: float) -> str:
    """Return the style of a cell that holds this fraction of its row."""
    red, green, blue = (round(a + share**0.5 * (b - a)) for a, b in zip(LIGHT, DARK, strict=True))
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#fff' if share > 0.2 else '#222'}"


def confusion_sections(
    counts: Counts, names: Sequence[str], wrong: Sequence[WrongImage] = ()
) -> Iterator[Element]:
    """Yield the confusion matrix, the most confident mistakes as images, and every class.

    Args:
        counts: K K, see `Predictions.confusion`.
        names: names of the K classes.
        wrong: images of mistakes, see `wrong_images`.
    """
    frequent = [
        (m.name, m.taken_for, f"{m.times:,}", f"{m.share:.1%}")
        for m in worst_mistakes(counts, names, most=MOST_FREQUENT)
    ]
    matrix = [confusion_figure(counts, names)]
    if frequent:
        columns = ["class", "taken for", "times", "of its images"]
        matrix.append(html_table("most frequent mistakes", columns, frequent))
    yield from section("Confusion matrix", matrix)
    if wrong:
        about = "The wrong predictions with the highest probability, each with its true class."
        yield from section("Most confident mistakes", [element("p", about), _sheet(wrong)])
    columns = ["class", "right", "images", "most often taken for"]
    classes = [
        (c.name, f"{c.accuracy:.1%}" if c.images else "no image", f"{c.images:,}", c.mistaken_for)
        for c in class_rows(counts, names)
    ]
    yield from section("Classes", [html_table("", columns, classes)])


def _sheet(wrong: Sequence[WrongImage]) -> Element:
    figures = []
    for each in wrong:
        drawn = None if each.image is None else image_element(each.image, each.name)
        said = f"{each.predicted} {each.probability:.1%}"
        words = (element("b", said), element("br"), f"true: {each.label}", element("br"), each.name)
        figures.append(element("figure", drawn, element("figcaption", *words)))
    return element("div", *figures, class_="sheet")


def evaluation_page(
    title: str,
    facts: Mapping[str, str],
    counts: Counts,
    names: Sequence[str],
    wrong: Sequence[WrongImage] = (),
) -> bytes:
    """Make a self-contained HTML page: metrics, confusion matrix, mistakes, every class.

    Args:
        title: title of the page.
        facts: metrics to show first, by name.
        counts: K K, see `Predictions.confusion`.
        names: names of the K classes.
        wrong: images of mistakes, see `wrong_images`.
    """
    return html_page(title, [facts_list(facts.items()), *confusion_sections(counts, names, wrong)])
