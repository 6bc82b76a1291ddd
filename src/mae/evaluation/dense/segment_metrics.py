"""Metrics of semantic segmentation from a confusion matrix of pixels.

The confusion is added up over images, so each pixel counts once, for any number of images at a
time and of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.segmentation.source import IGNORE, Mask

Confusion = NDArray[np.int64]
"""K K: pixels by their class (rows) and the predicted class (columns)."""
SCORES = ("miou", "macc", "aacc")


def confusion_of(mask: Mask, predicted: Mask, *, num_classes: int) -> Confusion:
    """Count the pixels of an image that are not ignored.

    Args:
        mask: H W, classes or IGNORE.
        predicted: H W, classes.
        num_classes: K.
    """
    kept = mask != IGNORE
    cells = mask[kept].astype(np.int64) * num_classes + predicted[kept]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


class ClassScore(NamedTuple):
    """Scores of one class."""

    name: str
    iou: float | None
    """Intersection over union of its pixels and those predicted as it; None where both are none."""
    accuracy: float | None
    """Fraction of its pixels predicted as it; None without pixels."""
    pixels: int


class SegmentScores(NamedTuple):
    """Scores of semantic segmentation."""

    miou: float
    """Mean IoU over the classes that have pixels or are predicted."""
    macc: float
    """Mean accuracy over the classes that have pixels."""
    aacc: float
    """Fraction of all pixels that are right."""
    classes: tuple[ClassScore, ...]

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> SegmentScores:
        """Return the scores in results.json."""
        classes = tuple(ClassScore(**row) for row in results["classes"])
        return cls(results["miou"], results["macc"], results["aacc"], classes)

    def values(self) -> dict[str, object]:
        """Return the scores for JSON."""
        rows = [row._asdict() for row in self.classes]
        return {name: getattr(self, name) for name in SCORES} | {"classes": rows}


def segment_scores(confusion: Confusion, names: Sequence[str]) -> SegmentScores:
    """Return the scores of a confusion matrix.

    Args:
        confusion: K K.
        names: K.

    Source: as mmsegmentation's `IoUMetric`: classes without a union are left out of the mean.
    """
    right, pixels = confusion.diagonal(), confusion.sum(axis=1)
    union = pixels + confusion.sum(axis=0) - right
    rows = tuple(
        ClassScore(name, r / u if u else None, r / n if n else None, n)
        for name, r, u, n in zip(
            names, right.tolist(), union.tolist(), pixels.tolist(), strict=True
        )
    )
    return SegmentScores(
        _mean([row.iou for row in rows]),
        _mean([row.accuracy for row in rows]),
        float(right.sum() / max(1, pixels.sum())),
        rows,
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0
