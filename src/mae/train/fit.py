"""The loop: batch, step, what is due. Pre-training and fine-tuning share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mae.data.batching.batch import Batch
from mae.errors import TrainingError
from mae.runs.state import TrainState
from mae.train.schedule import due
from mae.train.step import Metrics, OptimiserStep

MOST_BAD_IN_A_ROW = 5


class Cadence(NamedTuple):
    """Something to do every so many steps, and after the last one."""

    every: int
    act: Callable[[TrainState, Metrics], None]
    first: bool = False
    """Whether it is due after the first step of the run as well."""


def fit(
    state: TrainState,
    batches: Iterable[Batch],
    step: OptimiserStep,
    *,
    num_steps: int,
    rate: Callable[[int], float],
    fixed_rate: Callable[[int], float] = lambda step: 0.0,
    cadences: Sequence[Cadence] = (),
    seen: Callable[[Batch, Metrics], None] = lambda batch, metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to `num_steps`, or until asked to stop between two steps.

    Args:
        state: what training changes; it is advanced in place.
        batches: the batches from `state.step` on, one for each step.
        step: updates the parameters by one batch.
        num_steps: optimiser steps of the whole run.
        rate: learning rate of a step, a function of progress alone.
        fixed_rate: the part of it that the scales of parameter groups leave alone.
        cadences: what is due when; each also after the last step.
        seen: told of every batch after its step (broken pictures, skipped steps).
        stop: asked after every step.

    Raises:
        TrainingError: after five steps in a row whose loss or gradient was not finite.
    """
    with step.side_by_side():
        for batch in batches:
            metrics = step(state, batch, lr=rate(state.step), fixed_lr=fixed_rate(state.step))
            state.step += 1  # a skipped step counts: it moves position and rate, not parameters
            bad = not (metrics.finite or metrics.overflow)
            state.bad_in_a_row = 0 if metrics.finite else state.bad_in_a_row + bad
            seen(batch, metrics)
            if state.bad_in_a_row >= MOST_BAD_IN_A_ROW:
                raise TrainingError(
                    f"loss or gradient: got NaN or infinity in {MOST_BAD_IN_A_ROW} steps in a "
                    f"row, the last at step {state.step}; lower the learning rate, or look at the "
                    "pictures named in log.jsonl"
                )
            for every, act, first in cadences:
                if due(state.step, every, num_steps) or (first and state.step == 1):
                    act(state, metrics)
            if stop():
                return
