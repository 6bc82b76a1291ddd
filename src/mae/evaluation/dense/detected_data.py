"""Divide images with boxes into training and test images, as the run of the weights did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.data.detection.source import BoxSource
from mae.data.sources.splits import Kind
from mae.evaluation.dense.divided import Divided, ScoredPart, divided, scored_part
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import cores
from mae.progress import Progress


def detected(
    data: str | Path,
    *,
    seed: int,
    max_bad: float,
    progress: Progress,
    weights: object = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> Divided[BoxSource]:
    """Find images with boxes, check all of them, and divide them into training and test images.

    Args:
        data: see `find_boxed`; without splits, a fifth of the images is held out.
        seed: seed of the held-out images.
        max_bad: see `check`.
        progress: shows the check.
        weights: initial weights; on the data of their own run, its held-out images are used.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without boxes or without a training split, or too many bad ones.
    """
    ask = partial(check, max_bad=max_bad, progress=progress, threads=cores())
    noun, advice = "image with boxes", "images with boxes without splits"
    return divided(
        find_boxed(data), ask, seed=seed, weights=weights, noun=noun, advice=advice, ranks=ranks
    )


def detected_for_evaluation(
    data: str | Path,
    *,
    classes: Sequence[str],
    split: Kind | None,
    weights: object,
    max_bad: float,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> ScoredPart[BoxSource]:
    """Find the images and boxes on which a detector is scored.

    Args:
        data: see `find_boxed`; of splits, the validation split, else the test split.
        classes: classes of the detector.
        split: another split.
        weights: the detector; on the data of its own run, only its held-out images are used.
        max_bad: see `check`.
        progress: shows the check.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without boxes, classes that the detector does not have, or too many
            bad boxes.
        ConfigError: for a split that the data do not have.
    """
    ask = partial(check, max_bad=max_bad, progress=progress, classes=classes, threads=cores())
    return scored_part(find_boxed(data), ask, split=split, weights=weights, ranks=ranks)
