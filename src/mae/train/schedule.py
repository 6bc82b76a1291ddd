"""Learning-rate schedule and logging intervals as functions of progress."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from mae.config.run import FitConfig


def learning_rate(
    epoch: float,
    *,
    epochs: float,
    warmup_epochs: float,
    peak_lr: float,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
    decay: Literal["cosine", "linear", "steps"] = "cosine",
    milestones: Sequence[float] = (),
) -> float:
    """Return the learning rate at a fractional epoch: linear warm-up, then the decay.

    Args:
        epoch: progress, 0 to `epochs`.
        epochs: length of the run.
        warmup_epochs: length of the warm-up.
        peak_lr: rate at the end of the warm-up.
        min_lr: rate at the end of the run.
        warmup_start: fraction of the peak at which the warm-up starts.
        decay: half a cosine, a line, or a tenth at each milestone.
        milestones: fractions of the run, ascending, for "steps".

    Source: He et al. 2021, Table 8; the curve of the published code (golden test). The line is
    mmsegmentation's PolyLR of power 1, to a step; the steps are those of ViTDet.
    """
    if epoch < warmup_epochs:
        return peak_lr * (warmup_start + (1 - warmup_start) * epoch / warmup_epochs)
    if epochs <= warmup_epochs:
        return peak_lr
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    if decay == "steps":
        rest = 0.1 ** bisect_right(milestones, epoch / epochs)
    else:
        rest = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return min_lr + (peak_lr - min_lr) * rest


def rate_at(step: int, *, num_steps: int, config: FitConfig, batch: int) -> float:
    """Return the learning rate of an optimiser step; the warm-up scales with the run's length."""
    optim = config.optim
    return learning_rate(
        step / num_steps,
        epochs=1.0,
        warmup_epochs=config.warmup_share,
        peak_lr=optim.peak_lr(batch),
        min_lr=optim.min_lr,
        warmup_start=optim.warmup_start,
        decay=optim.decay,
        milestones=optim.milestones,
    )


def fixed_rate_at(step: int, *, num_steps: int, config: FitConfig) -> float:
    """Return the part of `rate_at` that layer decay does not scale.

    A group of scale s has the learning rate fixed + s * (rate - fixed). With `min_lr_scaled`, the
    fixed part is 0 and this is s * rate; without, it is
    min_lr + (s * peak - min_lr) * (1 + cos) / 2.
    """
    if config.optim.min_lr_scaled:
        return 0.0
    return learning_rate(
        step / num_steps,
        epochs=1.0,
        warmup_epochs=config.warmup_share,
        peak_lr=0.0,
        min_lr=config.optim.min_lr,
        decay=config.optim.decay,
        milestones=config.optim.milestones,
    )


LOG_ROWS = 200
"""Approximate rows of a log, for a run of any length."""


def log_every(num_steps: int) -> int:
    """Return the default number of steps between two rows of the log."""
    return max(1, round(num_steps / LOG_ROWS))


def due(step: int, every: int, last: int) -> bool:
    """Return whether a callback every `every` steps, and after the last one, is due at `step`."""
    return step % every == 0 or step == last
