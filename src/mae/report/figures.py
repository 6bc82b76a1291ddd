"""Charts and pictures that a page can hold without a file beside it: elements, SVG, data URIs.

Pages are built as element trees, so that whatever a file name holds is escaped where it stands.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple
from xml.etree.ElementTree import Element

from PIL import Image

WIDTH, LEFT, RIGHT = 520, 58, 14  # of the view box, and the room beside the plot
TOP, BASE = 30, 230  # where the plot begins and ends
MOST_POINTS = 400
DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4", "4 2 1 2")
"""How lines differ besides their colour; the style sheet names as many colours (s0, s1 ...)."""


def element(tag: str, /, *content: Element | str | None, **attributes: object) -> Element:
    """Make an HTML or SVG element from texts and elements; None is left out.

    Args:
        tag: name of the element.
        content: what it holds, in order.
        attributes: `class_` stands for class, `stroke_width` for stroke-width; None leaves out.
    """
    made = Element(
        tag,
        {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items() if v is not None},
    )
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def png_bytes(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_data_uri(image: Image.Image) -> str:
    """Encode a picture as the address of an <img> that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


class Series(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) by ascending x from 0, finite."""


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, *, log: bool = False
) -> Element:
    """Draw lines over a common x axis as an <svg> that follows the page's colours.

    Args:
        series: at least one, each with at least one point; where there are more points than can
            be told apart, neighbours are averaged.
        x_label: name and unit of x.
        y_label: name and unit of y.
        log: whether y is logarithmic; values must then be above 0.
    """
    lines = [_thinned(line.points) for line in series]
    xs, ys = zip(*(point for points in lines for point in points), strict=True)
    y_ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(min(ys), max(ys))
    warp = math.log10 if log else float
    x_at = _scale(0.0, max(xs) or 1.0, LEFT, WIDTH - RIGHT)
    y_at = _scale(warp(y_ticks[0]), warp(y_ticks[-1]), BASE, TOP)
    legend = len(series) > 1
    return element(
        "svg",
        element("title", y_label),
        element("desc", "; ".join(_told(line, x_label) for line in series)),
        *(mark for tick in y_ticks for mark in _level(number(tick), y_at(warp(tick)))),
        *(mark for tick in _ticks(0.0, max(xs)) if tick <= (max(xs) or 1.0)
          for mark in _place(number(tick), x_at(tick))),
        element("text", y_label + " (log scale)" * log, x=4, y=14),
        element("text", x_label, x=WIDTH - RIGHT, y=BASE + 36, text_anchor="end"),
        *(
            _line([(x_at(x), y_at(warp(y))) for x, y in points], index)
            for index, points in enumerate(lines)
        ),
        *(mark for i, line in enumerate(series) if legend for mark in _legend(line, i)),
        viewBox=f"0 0 {WIDTH} {BASE + 40 + 22 * len(lines) * legend}",
        role="img",
        class_="chart",
    )  # fmt: skip


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _level(label: str, y: float) -> Iterable[Element]:
    yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    yield element("text", label, x=LEFT - 7, y=y + 4, text_anchor="end")


def _place(label: str, x: float) -> Iterable[Element]:
    yield element("line", x1=x, x2=x, y1=BASE, y2=BASE + 4, class_="axis")
    yield element("text", label, x=x, y=BASE + 17, text_anchor="middle")


def _line(places: Sequence[tuple[float, float]], index: int) -> Element:
    # Ends where it is once more: one point alone is then a line without length, and so a dot.
    path = "L".join(f"{x} {y}" for x, y in [*places, places[-1]])
    look = index % len(DASHES)
    dash = DASHES[look] or None
    return element("path", d=f"M{path}", class_=f"line s{look}", stroke_dasharray=dash)


def _legend(line: Series, index: int) -> Iterable[Element]:
    y = BASE + 52 + 22 * index
    name = line.name if len(line.name) <= 44 else f"{line.name[:21]}…{line.name[-21:]}"
    yield _line([(LEFT, y), (LEFT + 44, y)], index)
    text = f"{name}: {number(line.points[-1][1])} at the end"
    yield element("text", text, x=LEFT + 54, y=y + 4)


def _told(line: Series, x_label: str) -> str:
    (first_x, first), (last_x, last) = line.points[0], line.points[-1]
    low, high = min(y for _, y in line.points), max(y for _, y in line.points)
    return (
        f"{line.name}: {number(first)} at {number(first_x)}, {number(last)} at {number(last_x)} "
        f"({x_label}); lowest {number(low)}, highest {number(high)}"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until there are few enough to be told apart."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Give about five round numbers that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    size: float = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * 5.5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Give powers of ten that enclose low and high, with 2 and 5 times each where they are few."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    stride = -(-(last - first) // 6)
    between = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + stride, stride) for m in between]
    start = max(i for i, tick in enumerate(ticks) if tick <= low)
    stop = min(i for i, tick in enumerate(ticks) if tick > high)
    return ticks[start : stop + 1]


def number(value: float) -> str:
    """Write a number with three or four digits: 0.0123, 1,234, 1.235 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e5):
            return f"{value / size:.4g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
