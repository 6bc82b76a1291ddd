"""Scores of pixels: by hand, and from scikit-learn's confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from mae.data.segmentation.source import IGNORE
from mae.evaluation.dense.segment_metrics import confusion_of, segment_scores

MASK = np.array([[0, 0, 1, 1], [0, 2, 2, IGNORE]], dtype=np.uint8)
FOUND = np.array([[0, 1, 1, 1], [0, 2, 0, 3]], dtype=np.uint8)


def test_scores_of_eight_pixels_by_hand() -> None:
    # Class 0: 3 pixels, 2 right, 3 predicted, so 2 / 4; 1: 2 of 2, 3 predicted, 2 / 3;
    # 2: 1 of 2, 1 predicted, 1 / 2; 3 has no pixel, and is predicted for an ignored one alone.
    confusion = confusion_of(MASK, FOUND, num_classes=4)

    found = segment_scores(confusion, "abcd")

    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert [row.iou for row in found.classes] == [2 / 4, 2 / 3, 1 / 2, None]
    assert [row.accuracy for row in found.classes] == [2 / 3, 1, 1 / 2, None]
    assert [row.pixels for row in found.classes] == [3, 2, 2, 0]
    assert found.miou == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert found.macc == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found.aacc == pytest.approx(5 / 7)


def test_a_class_that_is_predicted_without_any_pixel_counts_as_0() -> None:
    found = segment_scores(np.array([[3, 1], [0, 0]]), "ab")

    assert [row.iou for row in found.classes] == [3 / 4, 0.0]
    assert found.miou == 3 / 8 and found.macc == 3 / 4


def test_sums_over_images_are_scikit_learns() -> None:
    rng = np.random.default_rng(5)
    masks = [rng.integers(0, 5, (h, w)).astype(np.uint8) for h, w in ((7, 9), (4, 11), (13, 3))]
    found = [rng.integers(0, 5, mask.shape).astype(np.uint8) for mask in masks]
    for mask in masks:
        mask[mask == 4] = IGNORE

    total = sum(confusion_of(m, f, num_classes=5) for m, f in zip(masks, found, strict=True))

    true, seen = (np.concatenate([part.ravel() for part in parts]) for parts in (masks, found))
    kept = true != IGNORE
    assert np.array_equal(total, confusion_matrix(true[kept], seen[kept], labels=range(5)))
    expected = jaccard_score(true[kept], seen[kept], labels=range(4), average=None)
    rows = segment_scores(np.asarray(total), "abcde").classes
    assert [row.iou for row in rows[:4]] == pytest.approx(expected.tolist())
