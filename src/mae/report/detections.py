"""Figures and tables of detection: boxes beside their truth, mistakes, classes, sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from mae.data.batching.batch import SourceReader
from mae.data.decoding.decode import PixelKind
from mae.data.detection.jitter import decoded_boxed
from mae.data.detection.source import BoxSource
from mae.data.types import Pixels
from mae.evaluation.dense.detect import Detected, DetectedImage
from mae.evaluation.dense.detection_metrics import SCORES, ClassPrecision, DetectorScores
from mae.evaluation.dense.detection_mistakes import SCORE
from mae.report.boxes import DRAWN, draw_objects
from mae.report.contact_sheet import thumbnail
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

WRONG, MISSED, OTHERS = 6, 3, 3
"""Images in the report: with the most confident mistakes, with the most missed objects, and evenly
spread over the rest."""
HEADS = ("AP", "AP50", "AP75", "small", "medium", "large")
"""Names of the scores; sizes are COCO's areas."""
_NAMED = 3  # mistakes in a caption
EXAMPLES = ExampleKind(
    {
        "wrong": "Most confident mistakes",
        "missed": "Most missed objects",
        "others": "Other images",
    },
    panels=2,
    legend=(
        f"The annotated objects, with black labels where they are missed; then what is detected "
        f"with a score of at least {SCORE:g}, with black labels where it is wrong."
    ),
    caption=lambda facts: str(facts["caption"]),
)


def panels(pixels: Pixels, image: DetectedImage, names: Sequence[str]) -> Image.Image:
    """Draw the objects of an image beside what is detected."""
    small, compared, K = thumbnail(pixels, edge=DRAWN), image.compared, len(names)
    found = image.objects.above(SCORE)
    classes = found.instances.classes.tolist()
    labels = [f"{names[k]} {s:.2f}" for k, s in zip(classes, found.scores.tolist(), strict=True)]
    wrong = {each.place for each in compared.wrong}
    truth = [names[k] for k in image.truth.classes.tolist()]
    return side_by_side(
        [
            draw_objects(small, image.truth, truth, classes=K, marked=compared.missed),
            draw_objects(small, found.instances, labels, classes=K, marked=wrong),
        ]
    )


def chosen(images: Sequence[DetectedImage]) -> dict[str, list[DetectedImage]]:
    """Choose the images of the report, each once; see `WRONG`."""

    def first(rest: list[DetectedImage], key: Any, most: int) -> list[DetectedImage]:
        taken = sorted((image for image in rest if key(image)), key=key, reverse=True)[:most]
        rest[:] = [image for image in rest if image.id not in {each.id for each in taken}]
        return taken

    rest = [*images]
    wrong = first(
        rest, lambda image: max((m.score for m in image.compared.wrong), default=0), WRONG
    )
    missed = first(rest, lambda image: len(image.compared.missed), MISSED)
    places = np.linspace(0, len(rest) - 1, min(OTHERS, len(rest))).round().astype(int).tolist()
    return {"wrong": wrong, "missed": missed, "others": [rest[place] for place in places]}


def draw_examples(source: BoxSource, found: Detected, kind: PixelKind) -> dict[str, list[Example]]:
    """Draw images with mistakes, and some others, beside their objects.

    Args:
        source: images and objects.
        found: what was detected in them.
        kind: type and channels of the images.
    """
    reader, use = SourceReader(source.pairs), partial(decoded_boxed, kind=kind)
    drawn = defaultdict[str, list[Example]](list)
    for group, images in chosen(found.images).items():
        for place, image in enumerate(images):
            if (pixels := reader.read(image.id, use)) is not None:
                caption = _caption(image, source.box_classes)
                facts = {"name": image.name, "caption": caption, "file": f"{group}-{place}.png"}
                drawn[group].append(Example(facts, panels(pixels, image, source.box_classes)))
    return drawn


def _caption(image: DetectedImage, names: Sequence[str]) -> str:
    right, wrong, missed = image.compared
    mistakes = [f"{names[each.label]} {each.score:.2f}, {each.reason}" for each in wrong[:_NAMED]]
    shown = f" ({'; '.join(mistakes)}{' ...' * (len(wrong) > _NAMED)})" if wrong else ""
    return f"{right} right, {len(wrong)} wrong{shown}, {len(missed)} missed"


def results_of(found: Detected, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Return the contents of results.json."""
    compared = [image.compared for image in found.images]
    return {
        **found.scores.values(),
        "images": len(found.images),
        "unreadable": list(found.unreadable),
        "score": SCORE,
        "right": sum(each.right for each in compared),
        "wrong": sum(len(each.wrong) for each in compared),
        "missed": sum(len(each.missed) for each in compared),
        "examples": {group: [each.facts for each in own] for group, own in examples.items()},
    }


def detect_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores of results.json as text, by name."""
    boxes, masks = DetectorScores.of(results)
    found = {
        "AP of boxes": f"{percent(boxes.ap)} on {results['images']:,} test images",
        "AP50 of boxes": percent(boxes.ap50),
    }
    if masks is not None:
        found |= {"AP of masks": percent(masks.ap), "AP50 of masks": percent(masks.ap50)}
    counts = (f"{results[name]:,} {name}" for name in ("right", "wrong", "missed"))
    found[f"at a score of {results['score']:g}"] = ", ".join(counts)
    if unreadable := len(results["unreadable"]):
        found["unreadable"] = f"{unreadable:,} test images, left out"
    return found


def score_rows(scores: DetectorScores) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table: the scores, then the classes, the worst of many."""
    yield "", *HEADS
    yield from _score_cells(scores)
    rows, masks = [*_paired(scores)], scores.masks
    if len(rows) > MOST_CLASSES:
        present = [row for row in rows if row[0].ap is not None]
        rows = sorted(present, key=lambda row: row[0].ap or 0)[:MOST_CLASSES]
        yield (f"the {len(rows)} worst of {len(present)} classes",)
    yield "class", "AP", "AP50", *(["AP of masks"] if masks else []), "objects"
    for box, mask in rows:
        own = [] if mask is None else [percent(mask.ap)]
        yield box.name, percent(box.ap), percent(box.ap50), *own, f"{box.objects:,}"


def _paired(
    scores: DetectorScores,
) -> Iterator[tuple[ClassPrecision, ClassPrecision | None]]:
    """Yield the scores of each class, of boxes and of masks."""
    boxes, masks = scores
    rows = [None] * len(boxes.classes) if masks is None else masks.classes
    yield from zip(boxes.classes, rows, strict=True)


def _score_cells(scores: DetectorScores) -> Iterator[tuple[str, ...]]:
    for name, own in scores._asdict().items():
        if own is not None:
            yield name, *(percent(getattr(own, score)) for score in SCORES)


def _tables(scores: DetectorScores) -> Iterator[Element]:
    """Yield the tables of scores by size, and of classes."""
    yield from section("Scores", [html_table("", ["", *HEADS], _score_cells(scores))])
    boxes, masks = scores
    colours = class_colours(len(boxes.classes))
    cells: list[tuple[Element | str, ...]] = [
        (
            named(box.name, colours[number]),
            percent(box.ap),
            percent(box.ap50),
            *([] if mask is None else [percent(mask.ap), percent(mask.ap50)]),
            f"{box.objects:,}",
        )
        for number, (box, mask) in enumerate(_paired(scores))
    ]
    heads = ["class", "AP", "AP50", *(["AP of masks", "AP50 of masks"] if masks else []), "objects"]
    yield from section("Classes", [html_table("", heads, cells)])


def detect_sections(results: Mapping[str, Any], folder: Path) -> Iterator[Element]:
    """Yield the tables and the examples of a run, of its results.json and the panels' folder."""
    yield from _tables(DetectorScores.of(results))
    yield from EXAMPLES.stored(results["examples"], folder)


def evaluation_page(
    results: Mapping[str, Any], examples: Mapping[str, Sequence[Example]], *, title: str
) -> bytes:
    """Make a page of the scores, the tables and the examples."""
    facts = facts_list(detect_facts(results).items())
    return html_page(
        title, [facts, *_tables(DetectorScores.of(results)), *EXAMPLES.sections(examples)]
    )
