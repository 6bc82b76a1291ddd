"""Report on a data set in two-column sections, as text or as an HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from mae.data.audit.report import DatasetReport, Fault
from mae.report.figures import element, number, png_data_uri
from mae.report.page import html_page, html_table

MOST_NAMED = 5
"""Images named for each type of problem; `--json` lists all."""

_SHAPES = (
    (0.5, "narrower than 1:2"), (0.8, "upright, 1:2 to 4:5"), (1.25, "nearly square, 4:5 to 5:4"),
    (2.0, "lying, 5:4 to 2:1"), (float("inf"), "wider than 2:1"),
)  # fmt: skip


class Section(NamedTuple):
    """A title with rows of name and text."""

    title: str
    rows: list[tuple[str, str]]


def sections_of(found: DatasetReport, *, looked_at: int) -> Iterator[Section]:
    """Describe the findings, the most important first.

    Args:
        found: findings after the last image.
        looked_at: number of images inspected, readable or not.
    """
    yield Section("pictures", list(_overview(found, looked_at)))
    if found.ids:
        yield Section("sizes", list(_sizes(found)))
    if found.sums is not None and found.ids:
        yield Section("channels", list(_channels(found)))
    if found.faults:
        yield Section("cannot be used", list(_faults(found.faults)))
    if found.warnings:
        yield Section("read with a warning", list(_faults(found.warnings)))
    groups = (
        ("copies, byte for byte", found.copies()),
        ("look alike from afar: see for yourself", found.look_alikes()),
    )
    for title, places in groups:
        if places:
            yield Section(title, list(_groups(found, places)))
    if flat := found.nearly_constant():
        yield Section("nearly constant", [(f"{len(flat):,}", _names(found, flat))])


def _overview(found: DatasetReport, looked_at: int) -> Iterator[tuple[str, str]]:
    there = len(found.source)
    sample = "" if looked_at == there else f", a sample of {there:,}, evenly spread"
    yield "looked at", f"{looked_at:,}{sample}"
    yield "readable", f"{len(found.ids):,}, {_bytes(found.bytes)}"
    if found.faults:
        yield "cannot be used", f"{len(found.faults):,} ({len(found.faults) / looked_at:.1%})"
    if found.warnings:
        yield "with a warning", f"{len(found.warnings):,}: damage that reaches no pixel"
    yield "formats", _counts(found.formats)
    kinds = Counter({f"{k.channels} x {k.dtype}": n for k, n in found.kinds.items()})
    yield "stored as", _counts(kinds)
    for what, count in found.left_out.items():
        yield "not read", f"{what}, of {count:,}"
    yield "copies", f"{sum(len(group) - 1 for group in found.copies()):,} beyond the first"
    yield "look alike", f"{sum(len(group) - 1 for group in found.look_alikes()):,} beyond the first"
    yield "nearly constant", f"{len(found.nearly_constant()):,}"


def _sizes(found: DatasetReport) -> Iterator[tuple[str, str]]:
    sizes = np.array(found.sizes)
    for name, lengths in (("height", sizes[:, 0]), ("width", sizes[:, 1])):
        low, middle, high = (int(f(lengths)) for f in (np.min, np.median, np.max))
        yield name, f"{low:,} to {high:,} pixels, half of them up to {middle:,}"
    ratios = sizes[:, 1] / sizes[:, 0]
    low_ratio = 0.0
    for high_ratio, name in _SHAPES:
        count = int(((ratios > low_ratio) & (ratios <= high_ratio)).sum())
        low_ratio = high_ratio
        if count:
            yield name, f"{count:,}"


def _channels(found: DatasetReport) -> Iterator[tuple[str, str]]:
    assert found.sums is not None and found.kind is not None
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[found.kind.dtype]
    for channel, (mean, std) in enumerate(zip(found.sums.mean, found.sums.std, strict=True)):
        scaled = "" if full == 1 else f"; of the full range {mean / full:.4f}, {std / full:.4f}"
        yield f"channel {channel}", f"mean {number(mean)}, deviation {number(std)}{scaled}"


def _faults(faults: Sequence[Fault]) -> Iterator[tuple[str, str]]:
    for sort, count in Counter(fault.kind for fault in faults).most_common():
        yield f"{count:,}", sort
        for fault in [fault for fault in faults if fault.kind == sort][:MOST_NAMED]:
            yield "", fault.name + fault.reason.removeprefix(sort)
        if count > MOST_NAMED:
            yield "", f"and {count - MOST_NAMED:,} more"


def _groups(found: DatasetReport, places: Sequence[Sequence[int]]) -> Iterator[tuple[str, str]]:
    for group in places[:MOST_NAMED]:
        yield f"{len(group):,}", _names(found, group)
    if len(places) > MOST_NAMED:
        yield "", f"and {len(places) - MOST_NAMED:,} more groups"


def _names(found: DatasetReport, places: Sequence[int]) -> str:
    names = [found.source.name(found.ids[place]) for place in places[:MOST_NAMED]]
    more = len(places) - MOST_NAMED
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def _counts(counts: Mapping[str, int]) -> str:
    pairs = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count:,}" for name, count in pairs) or "none"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def pictures_page(title: str, sheet: Image.Image | None, sections: Iterable[Section]) -> bytes:
    """Make a self-contained HTML page: the contact sheet, then every section."""
    return html_page(title, _body(sheet, sections))


def _body(sheet: Image.Image | None, sections: Iterable[Section]) -> Iterator[Element]:
    first, *others = sections
    facts = (element("div", element("dt", k), element("dd", v)) for k, v in first.rows)
    yield element("dl", *facts, class_="facts")
    if sheet is not None:
        yield element("h2", "Some of them")
        size = {"width": sheet.width, "height": sheet.height}
        image = element("img", src=png_data_uri(sheet), alt="contact sheet", **size)
        said = "Evenly spread, as they are decoded; what cannot be used is left out."
        yield element("figure", image, element("figcaption", said), class_="strip")
    for section in others:
        yield element("h2", section.title[:1].upper() + section.title[1:])
        yield html_table("", ["", ""], section.rows)
