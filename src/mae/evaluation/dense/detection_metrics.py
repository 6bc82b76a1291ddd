"""Average precision of boxes and masks, as COCO computes it.

Computed by faster-coco-eval, or by pycocotools where that is missing; both give the same numbers.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.errors import ConfigError

Iou = Literal["bbox", "segm"]
"""Whether boxes or masks are compared."""
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RANGES = (("ap_small", 1), ("ap_medium", 2), ("ap_large", 3))  # places among COCO's areas


class ClassPrecision(NamedTuple):
    """Average precision of one class."""

    name: str
    ap: float | None
    """Mean over the IoU thresholds 0.50, 0.55 ... 0.95; None without objects, as below."""
    ap50: float | None
    objects: int
    """Number of its objects, crowds left out."""


class DetectionScores(NamedTuple):
    """Average precision, the mean over the classes that have objects; None where none has."""

    ap: float | None
    """Mean over the IoU thresholds 0.50, 0.55 ... 0.95."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Of objects of less than 32 x 32 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Of objects of at least 96 x 96 pixels."""
    classes: tuple[ClassPrecision, ...]

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> DetectionScores:
        """Return the scores in results.json."""
        classes = tuple(ClassPrecision(**row) for row in results["classes"])
        return cls(**{name: results[name] for name in SCORES}, classes=classes)

    def values(self) -> dict[str, object]:
        """Return the scores for JSON."""
        rows = [row._asdict() for row in self.classes]
        return {name: getattr(self, name) for name in SCORES} | {"classes": rows}


class DetectorScores(NamedTuple):
    """Scores of a detector."""

    boxes: DetectionScores
    masks: DetectionScores | None
    """None where the detector or the data have no masks."""

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> DetectorScores:
        """Return the scores in results.json."""
        masks = results["masks"]
        return cls(DetectionScores.of(results), masks and DetectionScores.of(masks))

    def values(self) -> dict[str, object]:
        """Return the scores for JSON: those of boxes, and those of masks in an entry."""
        return self.boxes.values() | {"masks": self.masks and self.masks.values()}


def detection_scores(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, iou: Iou = "bbox"
) -> DetectionScores:
    """Return the average precision of detections, at most 100 an image.

    Args:
        truth: images, annotations and categories in COCO's form, see `BoxSource.coco`.
        results: `image_id`, `category_id`, `score` and `bbox` (x y width height) of each
            detection, and with `iou="segm"` its `segmentation` (run lengths).
        iou: whether boxes or masks are compared.

    Raises:
        ConfigError: if neither library is installed.

    Source: COCO's `COCOeval`.
    """
    library = find_library()
    names = [each["name"] for each in sorted(truth["categories"], key=lambda each: each["id"])]
    ids = sorted(each["id"] for each in truth["categories"])
    counts = Counter(
        each["category_id"] for each in truth["annotations"] if not each.get("iscrowd", 0)
    )
    if not results:
        # The libraries refuse an empty list.
        rows = tuple(
            ClassPrecision(name, 0.0 if counts[i] else None, 0.0 if counts[i] else None, counts[i])
            for i, name in zip(ids, names, strict=True)
        )
        ranges = _sizes_of(truth)
        total = 0.0 if counts.total() else None
        own = {name: 0.0 if place in ranges else None for name, place in _RANGES}
        return DetectionScores(total, total, total, **own, classes=rows)
    with contextlib.redirect_stdout(io.StringIO()):
        gold = library.coco()
        # Both libraries change what they are given.
        gold.dataset = deepcopy({"info": {}, **truth})
        gold.createIndex()
        # With a box, the libraries would take its area for that of the mask.
        left = {"bbox"} if iou == "segm" else set[str]()
        given = [{name: v for name, v in each.items() if name not in left} for each in results]
        found = gold.loadRes(deepcopy(given))
        evaluation = library.evaluation(gold, found, iou)
        evaluation.evaluate()
        evaluation.accumulate()
    # T R K A M: IoU threshold, recall, class, area range, most detections.
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64)[..., -1]
    whole = precision[..., 0]  # T R K
    rows = tuple(
        ClassPrecision(name, _mean(whole[..., k]), _mean(whole[0, :, k]), counts[ids[k]])
        for k, name in enumerate(names)
    )
    return DetectionScores(
        _mean(whole),
        _mean(whole[0]),
        _mean(whole[5]),
        **{name: _mean(precision[..., place]) for name, place in _RANGES},
        classes=rows,
    )


def _sizes_of(truth: Mapping[str, Any]) -> set[int]:
    """Return which ranges of area have objects; COCO counts an area on a limit in both."""
    areas = [each["area"] for each in truth["annotations"] if not each.get("iscrowd", 0)]
    limits = ((1, 0.0, 32.0**2), (2, 32.0**2, 96.0**2), (3, 96.0**2, 1e10))
    return {place for place, low, high in limits if any(low <= area <= high for area in areas)}


def _mean(precision: NDArray[np.float64]) -> float | None:
    """Return the mean over the classes with objects; -1 marks the others."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


class Library(NamedTuple):
    """What computes the precision."""

    name: str
    coco: Any
    """Class of annotations."""
    evaluation: Any
    """Class of evaluations."""


def find_library() -> Library:
    """Import faster-coco-eval, or pycocotools where it is missing.

    Raises:
        ConfigError: if neither is installed; see the extra `detect`.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return Library("faster-coco-eval", COCO, COCOeval_faster)
    except ImportError:
        pass
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return Library("pycocotools", COCO, COCOeval)
    except ImportError:
        raise ConfigError(
            "detection scores need faster-coco-eval, which is not installed: "
            "pip install 'mae-vision[detect]'"
        ) from None
