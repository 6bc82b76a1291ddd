"""Examples in the report of segmentation and detection: panels of an image side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.report.figures import element, image_element
from mae.report.html import section

GAP = 8
MOST_CLASSES = 20
"""Classes in the terminal table; --json and the page list all."""
_GOLDEN = 0.61803398875  # of the hue circle: neighbours in the order of classes differ


class Example(NamedTuple):
    """An image of the report."""

    facts: Mapping[str, Any]
    """Its entry in results.json: name, file, and what its caption says."""
    panels: Image.Image
    """Side by side, see `side_by_side`."""

    @property
    def file(self) -> str:
        """Name of its panels in the folder of the run's images."""
        return str(self.facts["file"])


class ExampleKind(NamedTuple):
    """How examples are shown."""

    titles: Mapping[str, str]
    """Title of each group."""
    panels: int
    """Panels of an image."""
    legend: str
    caption: Callable[[Mapping[str, Any]], str]
    """Makes a caption of the facts of an example."""

    def sections(
        self, examples: Mapping[str, Sequence[tuple[Mapping[str, Any], Image.Image | None]]]
    ) -> Iterator[Element]:
        """Yield a section for each group, of facts and panels."""
        for group, title in self.titles.items():
            yield from section(title, self._strips(examples.get(group, ())))

    def stored(self, results: Mapping[str, Any], folder: Path) -> Iterator[Element]:
        """Yield the sections of a run, of its results.json and the folder of its panels."""
        yield from self.sections(
            {
                group: [
                    (facts, _opened(folder / facts["file"])) for facts in results.get(group, ())
                ]
                for group in self.titles
            }
        )

    def _strips(
        self, shown: Sequence[tuple[Mapping[str, Any], Image.Image | None]]
    ) -> Iterator[Element]:
        if shown:
            yield element("p", self.legend, class_="quiet")
        for facts, image in shown:
            caption = f"{facts['name']}: {self.caption(facts)}"
            yield element("p", caption)
            if image is not None:
                parts = (image_element(part, caption) for part in _apart(image, self.panels))
                yield element("div", *parts, class_="strip")


def _opened(path: Path) -> Image.Image | None:
    if not path.exists():
        return None
    with Image.open(path) as opened:
        return opened.convert("RGB")


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange images of one size in a row."""
    width, height = images[0].size
    sheet = Image.new("RGB", (len(images) * (width + GAP) - GAP, height), "white")
    for place, image in enumerate(images):
        sheet.paste(image, (place * (width + GAP), 0))
    return sheet


def _apart(sheet: Image.Image, count: int) -> Iterator[Image.Image]:
    """Yield the images of a row, so that a narrow page shows them one below the other."""
    width = (sheet.width + GAP) // count - GAP
    for place in range(count):
        left = place * (width + GAP)
        yield sheet.crop((left, 0, left + width, sheet.height))


def class_colours(count: int) -> NDArray[np.uint8]:
    """Return a colour for each class, 256 3; the rest are white."""
    colours = np.full((max(256, count), 3), 255, dtype=np.uint8)
    for number in range(count):
        saturation, value = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.6))[number % 3]
        rgb = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, saturation, value)
        colours[number] = np.rint(np.array(rgb) * 255)
    return colours


def named(name: str, colour: NDArray[np.uint8]) -> Element:
    """Make a swatch of the colour of a class, with its name."""
    style = f"background:rgb({', '.join(map(str, colour.tolist()))})"
    return element("span", element("span", "\u00a0", class_="swatch", style=style), f" {name}")


def percent(value: float | None) -> str:
    """Return a score in percent; nothing for a class without one."""
    return "" if value is None else f"{value:.1%}"
