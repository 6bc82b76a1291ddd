"""How results show at a prompt and in a notebook: one line, and a small HTML table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element, tostring

import numpy as np
from PIL import Image

from mae.config.run import FinetuneConfig
from mae.errors import MaeError
from mae.report.figures import element, image_element
from mae.report.finetuned import scores, test_sections
from mae.report.reconstruction import read_stages
from mae.report.run import headline, read_run
from mae.report.tables import report_of
from mae.report.transferred import transfer_facts, transfer_results

ResultT = TypeVar("ResultT", bound=type[tuple[Any, ...]])

MOST_ROWS = 30
"""Rows of the HTML table."""
LONGEST = 120
"""Letters of a text in a repr."""
FEW = 4
"""Numbers that are shown as they are."""
STRIP_WIDTH = 640
"""Pixels of an inline image; wider ones are reduced."""


def shown(cls: ResultT) -> ResultT:
    """Give a named tuple a repr of one line, and an HTML table for notebooks.

    A method `html` of the class may yield other elements instead of the rows that the command
    prints, see `report_of`.
    """
    cls.__repr__ = _line  # type: ignore[method-assign]
    cls._repr_html_ = _html  # type: ignore[attr-defined]
    return cls


def _line(result: Any) -> str:
    """Name the plain values of a result, and the lengths of its tables.

    Networks, configurations, long texts and spreads are left out.
    """
    parts = []
    own = {"sentence": sentence} if (sentence := getattr(result, "sentence", None)) else {}
    for name, value in {**own, **result._asdict()}.items():
        if (isinstance(value, str) and len(value) > LONGEST) or name.endswith("_spread"):
            continue
        if isinstance(value, float):
            parts.append(f"{name}={value:.4g}")
        elif isinstance(value, str | Path | Number):
            parts.append(f"{name}={str(value) if isinstance(value, Path) else value!r}")
        elif isinstance(value, tuple | np.ndarray) and not hasattr(value, "_asdict"):
            few = 0 < len(value) <= FEW and all(isinstance(each, Number) for each in value)
            parts.append(f"{name}={tuple(value)}" if few else f"{name}=<{len(value)}>")
    return f"{type(result).__name__}({', '.join(parts)})"


def _html(result: Any) -> str:
    own = getattr(result, "html", None)
    content = own() if own else [rows_table(islice(report_of(result).rows, MOST_ROWS))]
    whole = element("div", element("b", type(result).__name__), *content)
    return tostring(whole, encoding="unicode", method="html")


def rows_table(rows: Iterable[Iterable[str]]) -> Element:
    """Lay out rows of text as a plain table, the first cell of each as its header."""
    left = "text-align:left"
    lines = (
        element("tr", *(element("td" if i else "th", c, style=left) for i, c in enumerate(row)))
        for row in rows
    )
    return element("table", *lines)


def run_html(path: Path, rows: Iterable[Iterable[str]]) -> Iterator[Element]:
    """Show a run: its facts, with the last reconstructions or the confusion matrix.

    Args:
        path: the run directory.
        rows: what to show where the directory cannot be read any more.
    """
    try:
        run = read_run(path)
        results = transfer_results(run)
        found = scores(run) if results is None else transfer_facts(run, results)
        yield rows_table([("run", str(path)), *found.items(), *headline(run).items()])
        drawn = sorted(run.files.images.glob(f"step-{'[0-9]' * 8}.png"))
        for stage, image in read_stages(drawn[-1]).items() if drawn else ():
            yield element("div", stage, element("br"), image_element(reduced(image), stage))
        if isinstance(run.config, FinetuneConfig):
            matrix = (part.find("figure") for part in islice(test_sections(run), 1))
            yield from (figure for figure in matrix if figure is not None)
    except (MaeError, OSError):
        yield rows_table(rows)


def reduced(image: Image.Image) -> Image.Image:
    """Reduce an image that is wider than `STRIP_WIDTH` by a whole factor."""
    return image.reduce(-(-image.width // STRIP_WIDTH))
