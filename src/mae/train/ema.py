"""Exponential moving average of the weights, stored in the optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AVERAGE = "average"


@contextmanager
@torch.no_grad()
def averaging(optimizer: torch.optim.Optimizer, *, decay: float | None) -> Iterator[None]:
    """Update the average after the optimiser steps inside this context.

    The average starts at the weights before the first step; each step computes
    decay * average + (1 - decay) * weights.

    Args:
        optimizer: its state holds the average of each parameter.
        decay: factor of the average in each step; none: no average.
    """
    if decay is None:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Stored only after the first step: the optimiser takes a nonempty state as initialised.
    before = {p: p.clone() for p in parameters if AVERAGE not in optimizer.state.get(p, {})}
    yield
    for parameter in parameters:
        if parameter.grad is not None:
            own = optimizer.state[parameter]
            own.setdefault(AVERAGE, before.get(parameter)).lerp_(parameter, 1 - decay)


@torch.no_grad()
def use_average(optimizer: torch.optim.Optimizer) -> None:
    """Set the parameters to their averages, where there are any, in place."""
    for parameter, own in optimizer.state.items():
        if AVERAGE in own:
            parameter.copy_(own[AVERAGE])
