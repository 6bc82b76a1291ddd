"""Figures and tables of semantic segmentation: overlays, masks, classes, worst images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from mae.data.batching.batch import SourceReader
from mae.data.decoding.header import kind_of
from mae.data.segmentation.crop import decoded_pair, nearest
from mae.data.segmentation.source import IGNORE, Mask, MaskSource
from mae.data.types import Pixels
from mae.evaluation.dense.segment import Segmented, SegmentView, segmented_mask
from mae.evaluation.dense.segment_metrics import SegmentScores
from mae.model.dense.segmenter import Segmenter
from mae.report.contact_sheet import as_rgb, thumbnail
from mae.report.examples import (
    MOST_CLASSES,
    Example,
    ExampleKind,
    class_colours,
    named,
    percent,
    side_by_side,
)
from mae.report.html import facts_list, html_page, html_table, section

PANEL = 288
"""Longest side of an image in the report, in pixels; three are side by side."""
WORST, OTHERS = 6, 3
"""Images in the report: of the lowest scores, and evenly spread over the rest."""
NAMES = ("mIoU", "mAcc", "aAcc")
EXAMPLES = ExampleKind(
    {"worst": "Worst images", "others": "Other images"},
    panels=3,
    legend="Image, its mask, and the prediction.",
    caption=lambda facts: f"mIoU {facts['miou']:.1%}",
)
_OPACITY = 0.55


def indexed_png(mask: Mask, *, classes: int) -> Image.Image:
    """Return a mask as a PNG of a palette, whose values are the classes."""
    image = Image.fromarray(mask)
    image.putpalette(class_colours(classes).tobytes())
    return image


def overlay(pixels: Pixels, mask: Mask, *, classes: int) -> Image.Image:
    """Draw the colours of the classes over an image H W C; ignored pixels stay as they are."""
    image = np.asarray(as_rgb(pixels)).astype(np.float32)
    colours = class_colours(classes)[mask]
    mixed = image * (1 - _OPACITY) + colours * _OPACITY
    drawn = np.where((mask == IGNORE)[..., None], image, mixed)
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def panels(pixels: Pixels, truth: Mask, found: Mask, *, classes: int) -> Image.Image:
    """Draw an image, its mask and the predicted one side by side."""
    small = thumbnail(pixels, edge=PANEL)
    size = small.height, small.width
    drawn = (
        overlay(np.asarray(small), nearest(mask, size=size), classes=classes)
        for mask in (truth, found)
    )
    return side_by_side([small, *drawn])


def draw_examples(
    model: Segmenter, source: MaskSource, found: Segmented, view: SegmentView
) -> dict[str, list[Example]]:
    """Draw the worst images and some others with their masks and predictions.

    Args:
        model: on its device, in evaluation mode.
        source: images with masks.
        found: their scores.
        view: how the model sees them.
    """
    reader, K = SourceReader(source.pairs), model.num_classes
    use = partial(decoded_pair, kind=kind_of(model.encoder.config))
    drawn = dict[str, list[Example]]()
    for kind, scores in found.examples(worst=WORST, others=OTHERS).items():
        drawn[kind] = []
        for place, score in enumerate(scores):
            if (pair := reader.read(score.id, use)) is not None:
                image = panels(*pair, segmented_mask(model, pair[0], view), classes=K)
                facts = {"name": score.name, "miou": score.miou, "file": f"{kind}-{place}.png"}
                drawn[kind].append(Example(facts, image))
    return drawn


def score_rows(scores: SegmentScores) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table: the scores, then the classes, the worst of many."""
    yield from ((name, f"{getattr(scores, name.lower()):.2%}") for name in NAMES)
    rows = scores.classes
    if len(rows) > MOST_CLASSES:
        present = [row for row in rows if row.iou is not None]
        rows = tuple(sorted(present, key=lambda row: row.iou or 0)[:MOST_CLASSES])
        yield (f"the {len(rows)} worst of {len(present)} classes",)
    total = max(1, sum(row.pixels for row in scores.classes))
    yield "class", "IoU", "accuracy", "of the pixels"
    for row in rows:
        yield row.name, percent(row.iou), percent(row.accuracy), f"{row.pixels / total:.2%}"


def segment_sections(results: Mapping[str, Any], folder: Path) -> Iterator[Element]:
    """Yield the table of classes and the examples of a run.

    Args:
        results: contents of results.json.
        folder: folder of the panels.
    """
    yield from section("Classes", [_class_table(results["classes"])])
    yield from EXAMPLES.stored(results, folder)


def evaluation_page(
    results: Mapping[str, Any], examples: Mapping[str, Sequence[Example]], *, title: str
) -> bytes:
    """Make a page of the scores, the table of classes and the examples."""

    def body() -> Iterator[Element]:
        yield facts_list(segment_facts(results).items())
        yield from section("Classes", [_class_table(results["classes"])])
        yield from EXAMPLES.sections(examples)

    return html_page(title, body())


def _class_table(rows: Sequence[Mapping[str, Any]]) -> Element:
    colours, total = class_colours(len(rows)), max(1, sum(row["pixels"] for row in rows))
    cells = [
        (
            named(row["name"], colours[number]),
            percent(row["iou"]),
            percent(row["accuracy"]),
            f"{row['pixels'] / total:.2%}",
        )
        for number, row in enumerate(rows)
    ]
    return html_table("", ["class", "IoU", "accuracy", "of the pixels"], cells)


def segment_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores as text, by name."""
    found = {name: f"{results[name.lower()]:.1%}" for name in NAMES}
    found["mIoU"] += f" of {results['images']:,} test images"
    if unreadable := len(results.get("unreadable", ())):
        found["unreadable"] = f"{unreadable:,} test images, left out"
    return found


def results_of(
    found: Segmented, scores: SegmentScores, examples: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
    """Return the contents of results.json."""
    shown = {kind: [each.facts for each in drawn] for kind, drawn in examples.items()}
    counts = {"images": len(found.images), "unreadable": list(found.unreadable)}
    return scores.values() | counts | shown
