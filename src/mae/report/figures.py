"""HTML elements, SVG line charts and images as data URIs for self-contained pages.

Pages are built as element trees, so that text such as file names is always escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple
from xml.etree.ElementTree import Element

from PIL import Image

WIDTH, LEFT, RIGHT = 520, 58, 14  # width of the view box, margins of the plot
TOP, BASE = 30, 230  # vertical extent of the plot
MOST_POINTS = 400
DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4", "4 2 1 2")
"""Dash patterns of the lines; the style sheet defines as many colours (s0, s1 ...)."""


def element(tag: str, /, *content: Element | str | None, **attributes: object) -> Element:
    """Make an HTML or SVG element from texts and elements; None is skipped.

    Args:
        tag: name of the element.
        content: texts and child elements, in order.
        attributes: `class_` sets class, `stroke_width` sets stroke-width; None is skipped.
    """
    given = {name: str(value) for name, value in attributes.items() if value is not None}
    made = Element(tag, {name.rstrip("_").replace("_", "-"): v for name, v in given.items()})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image_element(image: Image.Image, alt: str) -> Element:
    """Make an <img> that holds the image as a PNG data URI."""
    uri = "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
    return element("img", src=uri, alt=alt, width=image.width, height=image.height)


class Series(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), finite, by ascending x >= 0."""


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> Element:
    """Draw lines over a common x axis as an <svg> with the colours of the page.

    Args:
        series: at least one, each with at least one point; of more than MOST_POINTS points,
            neighbours are averaged.
        x_label: name and unit of x.
        y_label: name and unit of y.
    """
    lines = [_thinned(line.points) for line in series]
    xs, ys = zip(*(point for points in lines for point in points), strict=True)
    y_ticks, last_x = _ticks(min(ys), max(ys)), max(xs) or 1.0
    x_at = _scale(0.0, last_x, LEFT, WIDTH - RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], BASE, TOP)
    marks = [element("text", y_label, x=4, y=14)]
    marks.append(element("text", x_label, x=WIDTH - RIGHT, y=BASE + 36, text_anchor="end"))
    for tick in y_ticks:
        y = y_at(tick)
        marks.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(element("text", number(tick), x=LEFT - 7, y=y + 4, text_anchor="end"))
    for tick in _ticks(0.0, last_x):
        if tick <= last_x:
            label = number(tick)
            marks.append(element("text", label, x=x_at(tick), y=BASE + 17, text_anchor="middle"))
    for index, (line, points) in enumerate(zip(series, lines, strict=True)):
        text, y = f"{line.name}: {line.points[-1][1]:.4g} at the end", BASE + 52 + 22 * index
        marks.append(_line([(x_at(x), y_at(value)) for x, value in points], index))
        marks.append(_line([(LEFT, y), (LEFT + 44, y)], index))
        marks.append(element("text", text, x=LEFT + 54, y=y + 4))
    view, title = f"0 0 {WIDTH} {BASE + 40 + 22 * len(lines)}", element("title", y_label)
    return element("svg", title, *marks, viewBox=view, role="img", class_="chart")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _line(places: Sequence[tuple[float, float]], index: int) -> Element:
    # The last point is repeated, so that a single point is drawn as a dot.
    path = "L".join(f"{x} {y}" for x, y in [*places, places[-1]])
    look = index % len(DASHES)
    dash = DASHES[look] or None
    return element("path", d=f"M{path}", class_=f"line s{look}", stroke_dasharray=dash)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours so that at most MOST_POINTS points remain."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose low and high."""
    most = max(abs(low), abs(high))
    span = high - low if high - low > 1e-6 * most else most or 1.0  # else rounding alone
    size: float = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * 5.5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Format a number with three or four digits: 0.0123, 1,234, 1.235 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e5):
            return f"{value / size:.4g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
