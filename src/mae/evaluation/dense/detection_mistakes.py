"""Which detections are right: each object is found once, by a box of its class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.detection.source import Boxes, Instances

SCORE, IOU = 0.5, 0.5
"""Lowest score of what is counted as a detection, and overlap with an object from which it is one
of it."""
_NEAR = 0.1  # overlap from which a box is one of an object, in the wrong place
_INSIDE = 0.5  # of a detection within a crowd


class DetectedObjects(NamedTuple):
    """What a detector finds in an image, the most confident first."""

    instances: Instances
    """In the pixels of the image; masks as run lengths, if the detector has them."""
    scores: NDArray[np.float32]
    """N in (0, 1]."""

    def above(self, score: float) -> DetectedObjects:
        """Return those of at least a score."""
        count = int((self.scores >= score).sum())
        return DetectedObjects(self.instances.first(count), self.scores[:count])


class Mistake(NamedTuple):
    """A detection of no object."""

    place: int
    """Among the detections of its image."""
    score: float
    label: int
    """Its class."""
    reason: str
    """What is there instead."""


class Compared(NamedTuple):
    """Detections of an image compared with its objects."""

    right: int
    wrong: tuple[Mistake, ...]
    """The most confident first."""
    missed: tuple[int, ...]
    """Places of the objects that no detection is of, crowds left out."""


def compare(
    found: DetectedObjects, truth: Instances, names: tuple[str, ...], *, score: float = SCORE
) -> Compared:
    """Assign detections to objects by their boxes, the most confident first.

    A detection is right if it overlaps an object of its class that none before it took; what lies
    in a crowd of its class counts as neither right nor wrong.

    Args:
        found: detections.
        truth: objects.
        names: of the classes.
        score: lowest score that counts.
    """
    kept = found.above(score).instances
    overlaps, single = box_overlaps(kept.boxes, truth.boxes), ~truth.crowd
    inside = box_overlaps(kept.boxes, truth.boxes, of_first=True)
    free, right, wrong = single.copy(), 0, list[Mistake]()
    for place, label in enumerate(kept.classes.tolist()):
        same, own = truth.classes == label, overlaps[place]
        if (best := _best(own, same & free)) is not None and own[best] >= IOU:
            free[best], right = False, right + 1
        elif not (inside[place][same & truth.crowd] >= _INSIDE).any():
            reason = "nothing there"
            if (other := _best(own, single)) is not None and own[other] >= IOU:
                twice = truth.classes[other] == label
                reason = "found twice" if twice else f"it is {names[truth.classes[other]]}"
            elif (near := _best(own, same & single)) is not None and own[near] >= _NEAR:
                reason = "its box is off"
            wrong.append(Mistake(place, float(found.scores[place]), label, reason))
    return Compared(right, tuple(wrong), tuple(np.flatnonzero(free).tolist()))


def _best(overlaps: NDArray[Any], among: NDArray[np.bool_]) -> int | None:
    """Return the place of the largest overlap among some; None if there are none."""
    return int(np.where(among, overlaps, -1).argmax()) if among.any() else None


def box_overlaps(boxes: Boxes, others: Boxes, *, of_first: bool = False) -> NDArray[np.float64]:
    """Return the IoU of each pair of boxes, N M; or the fraction of the first that is in the other.

    Args:
        boxes: N 4, of an area.
        others: M 4.
        of_first: whether the intersection is divided by the area of the first alone.
    """
    first, second = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    both = sides.clip(0).prod(axis=-1)
    one, two = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (first, second))
    shared: NDArray[np.float64] = both / (one if of_first else one + two - both)
    return shared
