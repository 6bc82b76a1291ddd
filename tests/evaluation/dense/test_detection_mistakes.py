"""Detections assigned to objects by hand-worked overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mae.data.detection.source import Instances
from mae.evaluation.dense.detection_mistakes import DetectedObjects, box_overlaps, compare

NAMES = ("roof", "tree")


def objects(
    boxes: Sequence[tuple[int, ...]], classes: Sequence[int], crowd: Sequence[int] = ()
) -> Instances:
    N = len(boxes)
    return Instances(
        (50, 90),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(classes, dtype=np.int64),
        np.isin(np.arange(N), crowd),
        np.zeros(N),
        (None,) * N,
    )


def found(*rows: tuple[tuple[int, ...], int, float]) -> DetectedObjects:
    boxes, classes, scores = zip(*rows, strict=True)
    return DetectedObjects(objects(boxes, classes), np.array(scores, dtype=np.float32))


def test_overlaps_are_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 10, 4], [20, 20, 22, 30]], dtype=np.float32)
    others = np.array([[5, 0, 15, 4], [0, 0, 10, 8], [40, 0, 41, 1]], dtype=np.float32)

    assert box_overlaps(boxes, others) == pytest.approx(np.array([[1 / 3, 1 / 2, 0], [0, 0, 0]]))
    assert box_overlaps(boxes, others, of_first=True)[0] == pytest.approx([1 / 2, 1, 0])


def test_an_object_is_found_once_and_mistakes_say_what_is_there() -> None:
    truth = objects([(0, 0, 10, 10), (20, 0, 40, 10), (60, 20, 80, 40), (60, 0, 80, 5)],
                    [0, 1, 0, 1])  # fmt: skip
    detections = found(
        ((0, 0, 10, 9), 0, 0.9),  # 0.9 of the first roof
        ((20, 0, 40, 9), 0, 0.8),  # 0.9 of a tree
        ((0, 0, 10, 10), 0, 0.7),  # the first roof again
        ((70, 20, 90, 40), 0, 0.6),  # a third of the other roof
        ((0, 40, 10, 50), 1, 0.55),
        ((60, 0, 80, 5), 1, 0.49),  # right, below the score
    )

    compared = compare(detections, truth, NAMES)

    assert compared.right == 1
    assert [(each.place, each.reason) for each in compared.wrong] == [
        (1, "it is tree"), (2, "found twice"), (3, "its box is off"), (4, "nothing there"),
    ]  # fmt: skip
    assert compared.wrong[0].score == pytest.approx(0.8) and compared.wrong[0].label == 0
    assert compared.missed == (1, 2, 3)
    assert compare(detections, truth, NAMES, score=0.4).right == 2


def test_what_lies_in_a_crowd_of_its_class_is_neither_right_nor_wrong() -> None:
    truth = objects([(0, 0, 40, 40)], [0], crowd=[0])

    compared = compare(
        found(((5, 5, 9, 9), 0, 0.9), ((5, 5, 9, 9), 1, 0.8), ((38, 0, 44, 9), 0, 0.7)),
        truth,
        NAMES,
    )

    assert (compared.right, compared.missed) == (0, ())
    assert [(each.place, each.reason) for each in compared.wrong] == [
        (1, "nothing there"), (2, "nothing there"),
    ]  # fmt: skip


def test_an_image_without_objects_or_detections_is_compared() -> None:
    none = DetectedObjects(objects([], []), np.zeros(0, dtype=np.float32))

    assert compare(none, objects([], []), NAMES) == (0, (), ())
    assert compare(none, objects([(0, 0, 5, 5)], [1]), NAMES).missed == (0,)
    assert len(compare(found(((0, 0, 5, 5), 0, 0.9)), objects([], []), NAMES).wrong) == 1
