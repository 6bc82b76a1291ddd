"""Average precision against pycocotools, with crowds and run lengths."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from mae.data.segmentation.coco import run_lengths, run_lengths_of, runs_inside
from mae.errors import ConfigError
from mae.evaluation.dense.detection_metrics import (
    SCORES,
    DetectionScores,
    Iou,
    detection_scores,
    find_library,
)

IMAGES, SIZE = 7, (130, 190)
NAMES = ("roof", "tree", "car", "unused")


def rectangle(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    inside = np.zeros(SIZE, dtype=np.bool_)
    inside[y0:y1, x0:x1] = True
    return inside


def detection(image: int, box: Sequence[float], number: int, score: float) -> dict[str, Any]:
    """A detection in COCO's results form, with the mask of its box."""
    x0, y0, x1, y1 = box
    inside = run_lengths_of(rectangle((int(x0), int(y0), int(x1), int(y1))))
    return {
        "image_id": image + 1, "category_id": number + 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score, "segmentation": inside,
    }  # fmt: skip


def crafted() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes, some in crowds, and detections moved from them, missing or doubled."""
    rng, annotations, results = np.random.default_rng(5), [], []
    for image in range(IMAGES):
        for _ in range(9):
            h, w = rng.choice([9, 31, 60, 110], size=2)
            x0, y0 = int(rng.integers(0, SIZE[1] - w)), int(rng.integers(0, SIZE[0] - h))
            box, number, crowd = (x0, y0, x0 + int(w), y0 + int(h)), int(rng.integers(3)), False
            crowd = bool(rng.random() < 0.15)
            inside = rectangle(box)
            inside[box[1] : box[1] + 3, box[0] : box[0] + 3] = False  # a corner less
            polygon = [[x0, y0 + 3.5, x0 + 3.5, y0, box[2], y0, box[2], box[3], x0, box[3]]]
            runs = run_lengths_of(inside)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": number + 1,
                    "bbox": [x0, y0, int(w), int(h)],
                    "area": int(inside.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": runs if crowd or rng.random() < 0.5 else polygon,
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                dx, dy = rng.integers(-5, 6, size=2).tolist()
                x, y = max(0, x0 + dx), max(0, y0 + dy)
                moved = (x, y, min(SIZE[1], x + int(w)), min(SIZE[0], y + int(h)))
                named = number if rng.random() < 0.8 else int(rng.integers(4))
                results.append(detection(image, moved, named, float(rng.random())))
    images = [
        {"id": i + 1, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
        for i in range(IMAGES)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


# COCO's own summary of all classes, and of each class by itself.
def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], iou: Iou) -> Any:
    coco, cocoeval = (
        pytest.importorskip("pycocotools.coco"),
        pytest.importorskip("pycocotools.cocoeval"),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        gold = coco.COCO()
        gold.dataset = deepcopy(truth)
        gold.createIndex()
        # As detectron2: without its box, the area of a mask is its own.
        own = [{n: v for n, v in row.items() if n != "bbox" or iou == "bbox"} for row in results]
        found = gold.loadRes(deepcopy(own))
        stats = []
        for chosen in ([1, 2, 3, 4], [1], [2], [3], [4]):
            evaluation = cocoeval.COCOeval(gold, found, iou)
            evaluation.params.catIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats.append([None if value == -1 else float(value) for value in evaluation.stats])
    return stats


@pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_scores_are_those_of_pycocotools(
    library: str, iou: Iou, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, results = crafted()
    whole, *classes = by_pycocotools(truth, results, iou)
    pytest.importorskip(library)
    if library == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    before = json.dumps([truth, results])

    scores = detection_scores(truth, results, iou=iou)

    assert find_library().name.replace("-", "_") == library
    near = {"abs": 1e-9, "rel": 0}
    assert [getattr(scores, name) for name in SCORES] == [
        pytest.approx(v, **near) for v in whole[:6]
    ]
    assert all(0.05 < value < 0.95 for value in whole[:6])
    assert [row.name for row in scores.classes] == list(NAMES)
    for row, stats in zip(scores.classes, classes, strict=True):
        expected = (None, None) if stats[0] is None else stats[:2]
        assert (row.ap, row.ap50) == tuple(
            None if value is None else pytest.approx(value, **near) for value in expected
        )
    assert scores.classes[3] == ("unused", None, None, 0)
    crowds = sum(each["iscrowd"] for each in truth["annotations"])
    assert crowds >= 3
    assert sum(row.objects for row in scores.classes) == len(truth["annotations"]) - crowds
    assert json.dumps([truth, results]) == before
    assert DetectionScores.of(json.loads(json.dumps(scores.values()))) == scores


def test_the_truth_itself_scores_one() -> None:
    truth, _ = crafted()
    own = [{**each, "score": 0.5} for each in deepcopy(truth["annotations"]) if not each["iscrowd"]]
    pytest.importorskip("faster_coco_eval")

    scores = detection_scores(truth, own)

    assert scores.ap == scores.ap50 == scores.ap_small == scores.ap_large == 1


@pytest.mark.parametrize("results", [[], None])
def test_no_detections_score_zero_where_there_are_objects(results: list[Any] | None) -> None:
    truth, _ = crafted()
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] < 32**2]
    # None: one detection of a class without objects, which the library scores.
    far = [detection(0, (0, 0, 1, 1), 3, 0.1)]
    pytest.importorskip("faster_coco_eval")

    scores = detection_scores(truth, far if results is None else results)

    assert (scores.ap, scores.ap50, scores.ap75, scores.ap_small) == (0, 0, 0, 0)
    assert scores.ap_medium is scores.ap_large is scores.classes[3].ap is None
    assert scores.classes[0].ap == 0


def test_without_a_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[detect\]'"):
        detection_scores(*crafted())


def test_run_lengths_are_written_as_pycocotools_writes_them() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (3, 400), (70, 41)]
    for inside in [rng.random(shape) < p for shape in shapes for p in (0.0, 0.02, 0.7, 1.0)]:
        ours, theirs = run_lengths_of(inside), mask.encode(np.asfortranarray(inside, np.uint8))

        assert ours == {"size": list(inside.shape), "counts": theirs["counts"].decode()}
        again = runs_inside(run_lengths(ours["counts"]), size=inside.shape)
        assert np.array_equal(again, inside)
