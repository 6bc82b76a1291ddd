"""Divide images with masks into training and test images, as the run of the weights did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mae.data.segmentation.check import Checked, check
from mae.data.segmentation.layout import MaskedPart, find_masked
from mae.data.segmentation.source import MaskSource
from mae.data.sources.splits import Kind
from mae.evaluation.dense.divided import Divided, ScoredPart, divided, scored_part
from mae.evaluation.discover import some
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import cores
from mae.progress import Progress


def segmented(
    data: str | Path,
    *,
    seed: int,
    max_bad: float,
    progress: Progress,
    weights: object = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> Divided[MaskSource]:
    """Find images with masks, check all of them, and divide them into training and test images.

    Args:
        data: see `find_masked`; without splits, a fifth of the images is held out.
        seed: seed of the held-out images.
        max_bad: see `check`.
        progress: shows the check.
        weights: initial weights; on the data of their own run, its held-out images are used.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without masks or without a training split, or too many bad masks.
    """
    ask = partial(_checked, max_bad=max_bad, progress=progress, threads=cores())
    advice = "images/ and masks/ without splits"
    return divided(
        find_masked(data), ask, seed=seed, weights=weights, noun="mask", advice=advice, ranks=ranks
    )


def _checked(parts: Sequence[MaskedPart], **how: Any) -> Checked:
    """Check the masks, and note the classes that the first part, of training, does not show."""
    found = check(parts, **how)
    empty = [n for n, k in zip(found.classes, found.parts[0].pixels, strict=True) if not k]
    if not empty:
        return found
    missing = f"classes: no pixel of {some(empty, 5)} in the training masks"
    return found._replace(notes=(*found.notes, missing))


def segmented_for_evaluation(
    data: str | Path,
    *,
    classes: Sequence[str],
    split: Kind | None,
    weights: object,
    max_bad: float,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> ScoredPart[MaskSource]:
    """Find the images and masks on which a segmenter is scored.

    Args:
        data: see `find_masked`; of splits, the validation split, else the test split.
        classes: classes of the segmenter, which name those of the masks.
        split: another split.
        weights: the segmenter; on the data of its own run, only its held-out images are used.
        max_bad: see `check`.
        progress: shows the check.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without masks, classes that the segmenter does not have, or too many
            bad masks.
        ConfigError: for a split that the data do not have.
    """
    ask = partial(check, max_bad=max_bad, progress=progress, classes=classes, threads=cores())
    return scored_part(find_masked(data), ask, split=split, weights=weights, ranks=ranks)
