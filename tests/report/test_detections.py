"""Boxes beside their objects: what is drawn, chosen, said and stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.detect import DetectConfig
from mae.config.serialize import to_dict
from mae.data.decoding.header import kind_of
from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.data.detection.source import BoxSource, Instances
from mae.evaluation.dense.detect import Detected, DetectedImage
from mae.evaluation.dense.detection_metrics import DetectorScores, detection_scores
from mae.evaluation.dense.detection_mistakes import DetectedObjects, compare
from mae.progress import Progress
from mae.report.boxes import draw_objects
from mae.report.detections import chosen, draw_examples, evaluation_page, results_of, score_rows
from mae.report.examples import class_colours
from mae.report.figures import png_bytes
from mae.report.page import write_report
from tests.boxes import CLASSES, write_coco
from tests.model.tiny import tiny_config
from tests.report.runs import make_run


def objects(
    size: tuple[int, int], boxes: list[list[int]], classes: list[int], *, masks: bool = False
) -> Instances:
    N = len(boxes)
    drawn = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    return Instances(
        size, np.array(boxes, dtype=np.float32), np.array(classes, dtype=np.int64),
        np.zeros(N, dtype=np.bool_), np.ones(N), tuple(drawn) if masks else (None,) * N,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> BoxSource:
    part = find_boxed(write_coco(tmp_path / "data", count=8)).whole
    assert part is not None
    opened = part()
    return check([opened], max_bad=0.0, progress=Progress(quiet=True)).source(opened)


@pytest.fixture
def found(source: BoxSource) -> Detected:
    """Image i: one of two objects is missed in the first two; image 7 has a confident mistake."""
    images = []
    for i in range(len(source)):
        truth = source.instances(i)
        own = truth.first(1) if i < 2 else truth
        scores = np.full(len(own.boxes), 0.9, dtype=np.float32)
        if i == 7:
            other = own._replace(classes=(own.classes + 1) % 3)
            own, scores = other, np.array([0.97, 0.2], dtype=np.float32)
        detections = DetectedObjects(own, scores)
        compared = compare(detections, truth, source.box_classes)
        images.append(DetectedImage(i, source.name(i), detections, truth, compared))
    truths = source.coco()
    scores_of = DetectorScores(*(detection_scores(truths, [], iou=iou) for iou in ("bbox", "segm")))
    return Detected(scores_of, tuple(images), ("broken.png",))


def test_boxes_and_masks_are_drawn_where_they_are_at_any_scale() -> None:
    blank, colours = Image.new("RGB", (448, 224), "grey"), class_colours(3)
    own = objects((112, 224), [[20, 30, 60, 70], [100, 10, 200, 100]], [0, 2], masks=True)

    pixels = np.asarray(draw_objects(blank, own, ["", ""], classes=3)).astype(int)

    # Twice as large: the edges are at 40 to 120 and 60 to 140, two pixels wide.
    for place, (x, y) in ((0, (41, 100)), (0, (80, 61)), (2, (201, 100)), (2, (300, 199))):
        assert pixels[y, x].tolist() == colours[place].tolist()
    inside = 0.6 * 128 + 0.4 * colours[0].astype(float)
    assert pixels[100, 80] == pytest.approx(inside, abs=1)
    assert pixels[20, 20].tolist() == [128] * 3  # nothing is there


def test_labels_never_cover_each_other() -> None:
    blank = Image.new("RGB", (448, 448), "grey")
    boxes = [[100, 100, 300, 300], [100, 100, 300, 299], [101, 100, 300, 300]] * 4
    own = objects((448, 448), boxes, [0] * 12)
    marked = {0}

    many = np.asarray(draw_objects(blank, own, ["roof 0.99"] * 12, classes=1, marked=marked))
    one = np.asarray(draw_objects(blank, own, ["roof 0.99"] + [""] * 11, classes=1, marked=marked))

    black = (one == 0).all(axis=2)
    assert black.sum() > 300  # the label of a marked object, above it at the left
    rows, columns = np.where(black)
    assert rows.max() <= 100 and columns.min() in (100, 101)
    assert (many[black] == 0).all() and not np.array_equal(many, one)


def test_the_most_confident_mistakes_come_first_and_no_image_twice(found: Detected) -> None:
    groups = chosen(found.images)

    assert [image.id for image in groups["wrong"]] == [7]
    assert [image.id for image in groups["missed"]] == [0, 1]
    assert [image.id for image in groups["others"]] == [2, 4, 6]


def test_results_and_page_say_what_was_found(source: BoxSource, found: Detected) -> None:
    kind = kind_of(tiny_config())
    examples = draw_examples(source, found, kind)
    results = json.loads(json.dumps(results_of(found, examples)))
    page = evaluation_page(results, examples, title="Boxes of data").decode()

    assert DetectorScores.of(results) == found.scores
    # 8 images of two objects: two missed, then two more by the wrong classes of the last image.
    assert (results["right"], results["wrong"], results["missed"]) == (12, 1, 4)
    (wrong,) = results["examples"]["wrong"]
    named = {CLASSES[k] for k in source.instances(7).classes}
    assert wrong["caption"].startswith("0 right, 1 wrong (") and "0.97, it is " in wrong["caption"]
    assert any(f"it is {name})" in wrong["caption"] for name in named)
    for text in ("AP of masks", "12 right, 1 wrong, 4 missed", "Most confident mistakes", "roof",
                 "Most missed objects", "1 test images, left out", wrong["caption"]):  # fmt: skip
        assert text in page
    assert page.count("<img") == 2 * 6
    rows = [*score_rows(found.scores)]
    assert rows[0] == ("", "AP", "AP50", "AP75", "small", "medium", "large")
    assert rows[1][:2] == ("boxes", "0.0%") and rows[2][0] == "masks"
    assert [row[0] for row in rows[4:]] == list(CLASSES)


def test_the_report_of_a_run_shows_scores_mistakes_and_commands(
    source: BoxSource, found: Detected, tmp_path: Path
) -> None:
    config = DetectConfig(model=tiny_config(patch_size=8, image_size=(24, 32)), steps=200)
    run = make_run(tmp_path / "run", images=0, config=to_dict(config))
    examples = draw_examples(source, found, kind_of(config.model))
    for own in examples.values():
        for example in own:
            (run / "images").mkdir(exist_ok=True)
            (run / "images" / example.file).write_bytes(png_bytes(example.panels))
    (run / "results.json").write_text(json.dumps(results_of(found, examples)))

    page = write_report(run).read_text()

    for text in ("Detection run", "Finished: all 200 steps.", "AP50 of boxes", "0.97, it is",
                 "mae detect evaluate", "mae detect predict", "sum of the losses"):  # fmt: skip
        assert text in page
    assert page.count("<img") == 2 * 6 and "Evaluation</h2>" not in page
