"""Charts that are well-formed, named, and told apart by more than colour."""

from __future__ import annotations

import base64
import io
import re
from xml.etree.ElementTree import Element, fromstring, tostring

import numpy as np
import pytest
from PIL import Image

from mae.report.figures import (
    MOST_POINTS,
    Series,
    element,
    image_element,
    line_chart,
    number,
)

FALL = Series("a", [(0, 4.0), (10, 2.0), (20, 1.0)])
RISE = Series("b", [(0, 1.0), (20, 3.0)])


def texts(chart: Element) -> list[str]:
    return [found.text or "" for found in chart.iter("text")]


def paths(chart: Element) -> list[list[tuple[float, float]]]:
    """Give the points of each path, the repeated last one left out."""
    found = []
    for path in chart.iter("path"):
        pairs = re.findall(r"([-\d.]+) ([-\d.]+)", path.attrib["d"])
        found.append([(float(x), float(y)) for x, y in pairs][:-1])
    return found


@pytest.mark.parametrize("series", [[FALL], [FALL, RISE]], ids=["one line", "two lines"])
def test_a_chart_is_well_formed_and_inside_its_frame(series: list[Series]) -> None:
    chart = fromstring(tostring(line_chart(series, "step", "loss")))

    width, height = (float(v) for v in chart.attrib["viewBox"].split()[2:])
    assert chart.tag == "svg"
    assert all(0 <= x <= width and 0 <= y <= height for path in paths(chart) for x, y in path)


def test_a_chart_is_named_for_who_cannot_see_it() -> None:
    chart = line_chart([FALL, RISE], "step", "loss")

    assert chart.attrib["role"] == "img"
    assert chart.findtext("title") == "loss"


def test_lines_differ_by_dash_and_are_named() -> None:
    chart = line_chart([FALL, RISE, Series("c", RISE.points)], "step", "loss")

    dashes = {path.attrib.get("stroke-dasharray") for path in chart.iter("path")}
    assert len(dashes) == 3
    assert {"a: 1 at the end", "b: 3 at the end"} <= set(texts(chart))


def test_the_axes_have_round_ticks_that_enclose_the_values() -> None:
    labels = texts(line_chart([Series("a", [(3, 0.13), (97, 0.52)])], "step", "loss"))

    assert labels[:2] == ["loss", "step"]
    assert labels[2:8] == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    assert labels[8:-1] == ["0", "20", "40", "60", "80"]


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0.0)],
        [(7, 1e-9)],
        [(1, 5.0), (2, 5.0)],
        [(1, 5.0), (2, 5.0 + 1e-15)],
        [(1, -7.0), (2, -7.0 + 1e-12)],
    ],
)
def test_a_flat_line_and_a_single_point_are_drawn(points: list[tuple[float, float]]) -> None:
    path, _ = paths(line_chart([Series("a", points)], "step", "loss"))

    assert len(path) == len(points)


def test_a_long_line_is_averaged_to_what_can_be_seen() -> None:
    values = np.random.default_rng(0).normal(size=100_000).tolist()

    path, _ = paths(line_chart([Series("a", list(enumerate(values)))], "step", "loss"))

    assert MOST_POINTS / 2 < len(path) <= MOST_POINTS


def test_an_element_escapes_what_it_is_given() -> None:
    made = element("p", "<b> &", element("i", "</i>"), " tail", title='"><script>', hidden=None)

    text = tostring(made, encoding="unicode", method="html")

    assert text.startswith('<p title="&quot;')
    assert text.endswith(">&lt;b&gt; &amp;<i>&lt;/i&gt;</i> tail</p>")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (999.6, "1,000"), (1234.4, "1,234"), (123456, "123.5 k"),
     (1_234_567, "1.235 M"), (2.5e9, "2.5 G")],
)  # fmt: skip
def test_numbers_have_three_or_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_an_image_survives_its_data_uri() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 5, 3), dtype=np.uint8)

    made = image_element(Image.fromarray(pixels), "noise")

    head, _, data = made.attrib["src"].partition(",")
    assert (made.attrib["width"], made.attrib["height"]) == ("5", "3")
    assert head == "data:image/png;base64"
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), pixels)
