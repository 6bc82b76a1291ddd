"""The training loop shared by pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mae.data.batching.batch import Batch
from mae.errors import TrainingError
from mae.runs.state import TrainState
from mae.train.allocator import kept_memory
from mae.train.schedule import due
from mae.train.step import Metrics, OptimiserStep

MOST_BAD_IN_A_ROW = 5


class EveryNSteps(NamedTuple):
    """A callback, called every `every` steps and after the last one."""

    every: int
    call: Callable[[TrainState, Metrics], None]
    first: bool = False
    """Whether to call it after the first step of the run as well."""


def fit(
    state: TrainState,
    batches: Iterable[Batch],
    step: OptimiserStep,
    *,
    num_steps: int,
    rate: Callable[[int], float],
    fixed_rate: Callable[[int], float] = lambda step: 0.0,
    callbacks: Sequence[EveryNSteps] = (),
    on_step_end: Callable[[Batch, Metrics], None] = lambda batch, metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to `num_steps`, or until `stop` returns true after a step.

    Args:
        state: training state, updated in place.
        batches: the batches from `state.step` on, one for each step.
        step: the optimiser step on one batch.
        num_steps: optimiser steps of the whole run.
        rate: learning rate by step.
        fixed_rate: part of the learning rate that the `scale` of a parameter group does not
            change, by step.
        callbacks: called when due, in this order.
        on_step_end: called with every batch and the metrics of its step.
        stop: called after every step; true stops training.

    Raises:
        TrainingError: after five steps in a row with a non-finite loss or gradient.
    """
    with kept_memory(step.device), step.side_by_side():
        for batch in batches:
            metrics = step(state, batch, lr=rate(state.step), fixed_lr=fixed_rate(state.step))
            state.step += 1  # skipped steps count: data and rate advance, parameters do not
            bad = not (metrics.finite or metrics.overflow)
            state.bad_in_a_row = 0 if metrics.finite else state.bad_in_a_row + bad
            on_step_end(batch, metrics)
            if state.bad_in_a_row >= MOST_BAD_IN_A_ROW:
                raise TrainingError(
                    f"loss or gradient: got NaN or infinity in {MOST_BAD_IN_A_ROW} steps in a "
                    f"row, the last at step {state.step}; lower the learning rate, or check the "
                    "images listed in log.jsonl"
                )
            for every, call, first in callbacks:
                if due(state.step, every, num_steps) or (first and state.step == 1):
                    call(state, metrics)
            if stop():
                return
