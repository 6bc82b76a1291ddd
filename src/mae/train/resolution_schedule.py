"""Progressive image resolution: a first stage at smaller images, then the network's size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from mae.config.run import FitConfig, PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.loader import batches
from mae.planning.estimate import stage_models


class Stage(NamedTuple):
    """A stage of a run."""

    plan: BatchPlan
    """Defines its batches."""
    fraction: float
    """Part of the steps of the run."""


def stages(config: FitConfig, plan: BatchPlan) -> tuple[Stage, ...]:
    """Return the stages of a run, usually one.

    Stages differ only in image size: order, crops, flips and patch noise are counter-based random
    draws, and the positions of a smaller grid are resized from the network's.

    Source: progressive resolution (DailyMAE, arXiv 2404.00509).
    """
    if not isinstance(config, PretrainConfig):
        return (Stage(plan, 1.0),)
    return tuple(
        Stage(dataclasses.replace(plan, size=model.image_size, grid=model.grid), fraction)
        for model, fraction in stage_models(config)
    )


def staged_batches(
    config: FitConfig,
    plan: BatchPlan,
    *,
    start: int,
    num_steps: int,
    workers: int,
    **how: Any,
) -> Iterator[Batch]:
    """Yield the batches of a run from a step on, each at the image size of its stage.

    Args:
        config: of the run.
        plan: defines the batches of the last stage.
        start: first step.
        num_steps: of the whole run.
        workers: number of reader processes.
        how: other arguments of `batches`.
    """
    ended, progress = 0, 0.0
    for stage in stages(config, plan):
        began, progress = ended, progress + stage.fraction
        ended = round(progress * num_steps)
        if start < ended:
            first = max(start, began)
            yield from batches(stage.plan, start=first, stop=ended, workers=workers, **how)
