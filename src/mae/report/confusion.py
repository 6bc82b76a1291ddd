"""Confusion matrix of a classifier, as an image and as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.evaluation.metrics import class_rows
from mae.report.figures import element, image_element
from mae.report.page import facts_list, html_page, html_table

Counts = NDArray[np.int64]
"""Confusion matrix K K, see `Predictions.confusion`."""

EDGE = 600  # pixels; larger if there are more classes than that
LIGHT, DARK = (247, 246, 243), (11, 66, 120)  # colours of no image, and of all images of a class
CAPTION = (
    "Rows: true classes; columns: predicted classes; both in the order of the table. Darker cells "
    "hold a larger fraction of their row, by its square root, so that rare mistakes are visible."
)


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


def evaluation_page(
    title: str, facts: Mapping[str, str], counts: Counts, names: Sequence[str]
) -> bytes:
    """Make a self-contained HTML page: metrics, confusion matrix, mistakes, every class.

    Args:
        title: title of the page.
        facts: metrics to show first, by name.
        counts: K K, see `Predictions.confusion`.
        names: names of the K classes.
    """
    drawn = image_element(confusion_image(counts), "confusion of classes")
    body = [facts_list(facts.items()), element("h2", "Confusion matrix")]
    body.append(element("figure", drawn, element("figcaption", CAPTION)))
    mistakes = [
        (m.name, m.taken_for, f"{m.times:,}", f"{m.share:.1%}")
        for m in worst_mistakes(counts, names, most=20)
    ]
    if mistakes:
        columns = ["class", "taken for", "times", "of its images"]
        body.append(html_table("most frequent", columns, mistakes))
    columns = ["class", "right", "images", "most often taken for"]
    classes = [
        (c.name, f"{c.accuracy:.1%}" if c.images else "no image", f"{c.images:,}", c.mistaken_for)
        for c in class_rows(counts, names)
    ]
    body += [element("h2", "Classes"), html_table("", columns, classes)]
    return html_page(title, body)
