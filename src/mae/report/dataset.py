"""Report on a data set in two-column sections, as text or as an HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mae.data.audit.boxes import BoxReport
from mae.data.audit.report import DatasetReport, Fault
from mae.data.decoding.decode import FULL_RANGE
from mae.data.detection.check import SIZES
from mae.report.figures import element, image_element, number
from mae.report.html import facts_list, html_page, html_table

MOST_NAMED = 5
"""Images named for each type of problem; `--json` lists all."""

# Limits of width / height, and the names of the ranges between them.
_RATIOS = (0.5, 0.8, 1.25, 2)
_SHAPES = ("narrower than 1:2", "portrait, 1:2 to 4:5", "nearly square, 4:5 to 5:4",
           "landscape, 5:4 to 2:1", "wider than 2:1")  # fmt: skip

Rows = list[tuple[str, str]]


class Section(NamedTuple):
    """A title with rows of name and text."""

    title: str
    rows: Rows


def sections_of(found: DatasetReport, *, looked_at: int) -> Iterator[Section]:
    """Describe a data set, the most important facts first.

    Args:
        found: the report after the last image.
        looked_at: number of images inspected, readable or not.
    """
    sections = {
        "images": list(_overview(found, looked_at)),
        "sizes": list(_sizes(found)),
        "channels": list(_channels(found)),
        "unusable": list(_faults(found.faults)),
        "read with a warning": list(_faults(found.warnings)),
        "exact duplicates, byte for byte": _groups(found, found.copies()),
        "near duplicates, by a perceptual hash": _groups(found, found.look_alikes()),
        "nearly constant": [("", name) for name in _names(found, found.nearly_constant())],
    }
    return (Section(title, rows) for title, rows in sections.items() if rows)


def box_section(found: BoxReport | str) -> Section:
    """Describe the boxes of a data set, or why they cannot be used."""
    if isinstance(found, str):
        return Section("boxes", [("refused", found)])
    images = ", ".join(
        f"{count:,} images{f' in {name}' if name else ''}" for name, count in found.images.items()
    )
    what = "boxes and masks" if found.has_masks else "boxes"
    rows = [("found", f"{images}; {len(found.classes):,} classes; {what}")]
    for name, counts in zip(found.classes, found.counts.tolist(), strict=True):
        sizes = [f"{count:,} {size}" for size, count in zip(SIZES, counts, strict=True)]
        rows.append((name, f"{sum(counts):,} boxes: {', '.join(sizes)}"))
    rows.append(("sizes", "small: less than 32 x 32 pixels; large: at least 96 x 96"))
    return Section("boxes", rows + [("note", note) for note in found.notes])


def _overview(found: DatasetReport, looked_at: int) -> Iterator[tuple[str, str]]:
    count = len(found.source)
    sample = "" if looked_at == count else f", a sample of {count:,}, evenly spread"
    yield "inspected", f"{looked_at:,}{sample}"
    yield "readable", f"{len(found.ids):,}, {number(found.bytes / 1e6)} MB"
    if found.faults:
        yield "unusable", f"{len(found.faults):,} ({len(found.faults) / looked_at:.1%})"
    if found.warnings:
        yield "with a warning", f"{len(found.warnings):,}: damage that reaches no pixel"
    yield "formats", _counts(found.formats)
    yield "stored as", _counts({f"{k.channels} x {k.dtype}": n for k, n in found.kinds.items()})
    for what, count in found.left_out.items():
        yield "not read", f"{what}, of {count:,}"
    for name, groups in (("exact", found.copies()), ("near", found.look_alikes())):
        yield f"{name} duplicates", f"{sum(map(len, groups)) - len(groups):,} beyond the first"
    yield "nearly constant", f"{len(found.nearly_constant()):,}"


def _sizes(found: DatasetReport) -> Iterator[tuple[str, str]]:
    if not found.ids:
        return
    heights, widths = np.array(found.sizes).T
    for name, lengths in (("height", heights), ("width", widths)):
        low, median, high = (int(f(lengths)) for f in (np.min, np.median, np.max))
        yield name, f"{low:,} to {high:,} pixels, median {median:,}"
    places = np.searchsorted(_RATIOS, widths / heights)
    counts = Counter(_SHAPES[place] for place in places)
    yield from ((name, f"{counts[name]:,}") for name in _SHAPES if counts[name])


def _channels(found: DatasetReport) -> Iterator[tuple[str, str]]:
    if found.sums is None or found.kind is None or not found.ids:
        return
    full = FULL_RANGE[found.kind.dtype]
    for channel, (mean, std) in enumerate(zip(found.sums.mean, found.sums.std, strict=True)):
        scaled = "" if full == 1 else f"; scaled to [0, 1] {mean / full:.4f}, {std / full:.4f}"
        yield f"channel {channel}", f"mean {number(mean)}, std {number(std)}{scaled}"


def _faults(faults: Sequence[Fault]) -> Iterator[tuple[str, str]]:
    for kind, count in Counter(fault.kind for fault in faults).most_common():
        yield f"{count:,}", kind
        names = [f.name + f.reason.removeprefix(kind) for f in faults if f.kind == kind]
        yield from (("", name) for name in _first(names))


def _groups(found: DatasetReport, groups: Sequence[Sequence[int]]) -> Rows:
    named = [f"{len(group):,}: {', '.join(_names(found, group))}" for group in groups]
    return [("", text) for text in _first(named)]


def _names(found: DatasetReport, places: Sequence[int]) -> list[str]:
    return _first([found.source.name(found.ids[place]) for place in places])


def _first(items: Sequence[str]) -> list[str]:
    more = len(items) - MOST_NAMED
    return [*items[:MOST_NAMED], *([f"and {more:,} more"] if more > 0 else [])]


def _counts(counts: Mapping[str, int]) -> str:
    pairs = Counter(counts).most_common()
    return ", ".join(f"{name} {count:,}" for name, count in pairs) or "none"


def dataset_page(title: str, sheet: Image.Image | None, sections: Iterable[Section]) -> bytes:
    """Make a self-contained HTML page: the contact sheet, then every section."""
    first, *others = sections
    body = [facts_list(first.rows)]
    if sheet is not None:
        caption = element("figcaption", "Readable images, evenly spread, as they are decoded.")
        drawn = image_element(sheet, "contact sheet")
        body += [element("h2", "Sample"), element("figure", drawn, caption, class_="strip")]
    for name, rows in others:
        body += [element("h2", name.capitalize()), html_table("", ["", ""], rows)]
    return html_page(title, body)
