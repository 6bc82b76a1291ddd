"""A run whose ranks hold parts of the model: gather it for rank 0, and measure steps together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from torch import nn

from mae.data.batching.batch import Batch, BatchPlan
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps
from mae.train.measure import StepRecipe, seconds_of_steps
from mae.train.resolve import device_of
from mae.train.session import RunInProgress
from mae.train.step import OptimiserStep

if TYPE_CHECKING:
    from mae.parallel.exchange import GradientExchange

P = ParamSpec("P")


def whole_model(run: RunInProgress, state: TrainState, *, keep: bool = True) -> nn.Module:
    """Return the model with all of its values; where ranks hold parts, a collective.

    Args:
        run: the run.
        state: not changed.
        keep: whether this rank wants the values; no effect if it has them.
    """
    if state.skeleton is None:
        return state.model
    from mae.parallel.fsdp import gather

    with run.ranks.failures_of_others():
        return gather(state.model, state.skeleton, keep=keep)


def on_all_ranks(
    run: RunInProgress,
    draw: Callable[[TrainState], None] | None,
    check: EveryNSteps | None,
) -> tuple[Callable[[TrainState], None] | None, EveryNSteps | None]:
    """Return what every rank calls where rank 0 draws and checks: all gather the model for it.

    Args:
        run: a run whose ranks hold parts of the model.
        draw: of rank 0; None on the others.
        check: of rank 0; None on the others.
    """

    def gathering(
        call: Callable[Concatenate[TrainState, P], None] | None,
    ) -> Callable[Concatenate[TrainState, P], None]:
        def gathered(state: TrainState, /, *more: P.args, **names: P.kwargs) -> None:
            whole = whole_model(run, state, keep=call is not None)
            if call is not None:
                call(dataclasses.replace(state, model=whole, skeleton=None), *more, **names)

        return gathered

    draws, due = run.ranks.on_main(lambda: (draw is not None, check and (check.every, check.first)))
    call = None if check is None else check.call
    return (
        gathering(draw) if draws else None,
        EveryNSteps(due[0], gathering(call), first=due[1]) if due else None,
    )


def step_seconds(
    run: RunInProgress,
    state: TrainState,
    plan: BatchPlan,
    recipe: StepRecipe,
    exchange: GradientExchange,
) -> float:
    """Measure the seconds of a step of all ranks together.

    A learning rate of 0 leaves the parameters; moments are dropped after the last step.

    Args:
        run: the run.
        state: at step 0.
        plan: defines the batches.
        recipe: loss, preparation of a batch, and micro-batch.
        exchange: of the ranks.
    """
    step = OptimiserStep(
        loss=recipe.loss,
        config=run.config,
        device=device_of(state),
        micro_batch=recipe.micro_batch,
        exchange=exchange,
    )

    def take(batch: Batch, number: int) -> None:
        step(state, recipe.prepare(batch, number), lr=0.0)

    # All ranks go by the clock of rank 0, so that they take as many steps.
    clock = partial(run.ranks.on_main, time.perf_counter)
    seconds = seconds_of_steps(take, run.config, plan, clock=clock)
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer.state.clear()
    return seconds
