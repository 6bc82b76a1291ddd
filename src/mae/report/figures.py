"""Charts and pictures that a page can hold without a file beside it: elements, SVG, data URIs.

Pages are built as element trees, so that whatever a file name holds is escaped where it stands.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element

from PIL import Image

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 40  # room around the plot, in units of the view box
MOST_POINTS = 400
DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4", "4 2 1 2")
"""How lines differ besides their colour; the style sheet names as many colours (s0, s1 ...)."""


def element(name: str, *content: Element | str | None, **attributes: object) -> Element:
    """Make an HTML or SVG element from texts and elements; None is left out.

    Args:
        name: the tag.
        content: what it holds, in order.
        attributes: `class_` stands for class, `stroke_width` for stroke-width; None leaves out.
    """
    made = Element(
        name,
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
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def png_data_uri(image: Image.Image) -> str:
    """Encode a picture as the address of an <img> that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


class Series(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) by ascending x, finite."""


class _Axis(NamedTuple):
    """From values to places along one side of the plot."""

    low: float
    high: float
    start: float
    length: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (_log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + self.length * (value - low) / (high - low), 2)


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, log: bool = False
) -> Element:
    """Draw lines over a common x axis as an <svg> that follows the page's colours.

    Args:
        series: at least one, each with at least one point; more points than can be told apart
            are averaged.
        title: what a reader who does not see it is told first.
        x_label: name and unit of x.
        y_label: name and unit of y.
        log: whether y is logarithmic; values must then be above 0.
    """
    lines = [Series(name, _thinned(points)) for name, points in series]
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    x_ticks, y_ticks = _ticks(0.0, max(xs)), _log_ticks(ys) if log else _ticks(min(ys), max(ys))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x_at = _Axis(0.0, max(*xs, x_ticks[-1] * 1e-9), LEFT, plot_width, log=False)
    y_at = _Axis(y_ticks[0], y_ticks[-1], TOP + plot_height, -plot_height, log=log)
    legend = len(lines) > 1
    return element(
        "svg",
        element("title", title),
        element("desc", "; ".join(_told(line, x_label) for line in series)),
        *_horizontal_grid(y_ticks, y_at),
        *_marks_below([t for t in x_ticks if t <= x_at.high], x_at),
        element("text", y_label, x=4, y=14),
        element("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end"),
        *(_path(line, index, x_at, y_at) for index, line in enumerate(lines)),
        *(part for i, line in enumerate(series) if legend for part in _legend_row(line, i)),
        viewBox=f"0 0 {WIDTH} {HEIGHT + 22 * len(lines) * legend}",
        role="img",
        class_="chart",
    )


def _horizontal_grid(ticks: Iterable[float], y_at: _Axis) -> Iterable[Element]:
    for tick in ticks:
        y = y_at(tick)
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield element("text", number(tick), x=LEFT - 7, y=y + 4, text_anchor="end")


def _marks_below(ticks: Iterable[float], x_at: _Axis) -> Iterable[Element]:
    base = HEIGHT - BOTTOM
    yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis")
    for tick in ticks:
        x = x_at(tick)
        yield element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis")
        yield element("text", number(tick), x=x, y=base + 17, text_anchor="middle")


def _path(line: Series, index: int, x_at: _Axis, y_at: _Axis) -> Element:
    places = [f"{x_at(x)} {y_at(y)}" for x, y in line.points]
    # A line of one point has no length; a round end makes it a dot.
    places += places[:1] if len(places) == 1 else []
    return element("path", d="M" + "L".join(places), **_look(index))


def _legend_row(line: Series, index: int) -> tuple[Element, Element]:
    y = HEIGHT + 22 * index + 10
    name = line.name if len(line.name) <= 50 else f"{line.name[:24]}…{line.name[-24:]}"
    text = f"{name}: {number(line.points[-1][1])} at the end"
    sample = element("path", d=f"M{LEFT} {y}L{LEFT + 44} {y}", **_look(index))
    return sample, element("text", text, x=LEFT + 54, y=y + 4)


def _look(index: int) -> dict[str, object]:
    dash = DASHES[index % len(DASHES)]
    return {"class_": f"line s{index % len(DASHES)}", "stroke_dasharray": dash or None}


def _told(line: Series, x_label: str) -> str:
    (first_x, first), (last_x, last) = line.points[0], line.points[-1]
    low, high = min(y for _, y in line.points), max(y for _, y in line.points)
    return (
        f"{line.name}: {number(first)} at {number(first_x)}, {number(last)} at {number(last_x)} "
        f"({x_label}); lowest {number(low)}, highest {number(high)}"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until there are few enough; the first and the last stay as they are."""
    if len(points) <= MOST_POINTS:
        return list(points)
    inner = points[1:-1]
    edges = [len(inner) * i // (MOST_POINTS - 2) for i in range(MOST_POINTS - 1)]
    groups = [inner[start:stop] for start, stop in pairwise(edges)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means, points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Give about five round numbers that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * 4.5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Give powers of ten, with their halves and fifths where they are few, around the values."""
    low, high = math.floor(_log(min(values))), math.ceil(_log(max(values)))
    high = max(high, low + 1)
    between = (1, 2, 5) if high - low <= 2 else (1,)
    stride = max(1, (high - low) // 5)
    ticks = [m * 10.0**e for e in range(low, high, stride) for m in between]
    return [*ticks, 10.0**high]


def _log(value: float) -> float:
    return math.log10(value)


def number(value: float) -> str:
    """Write a number with three or four digits that mean something: 1,234,567 as 1.23 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e5, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.4g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
