"""A moving average of the trained weights, kept where checkpoints find it: beside the moments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AVERAGE = "average"


@contextmanager
@torch.no_grad()
def averaging(optimizer: torch.optim.Optimizer, *, decay: float | None) -> Iterator[None]:
    """Follow the parameters by an average while the optimiser steps in here.

    The average starts at the weights before the first step; each step adds 1 - decay of the new
    ones.

    Args:
        optimizer: its state holds the average of each parameter.
        decay: share of the average that is kept; none: no average.
    """
    if decay is None:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Not into the state before the first step, which the optimiser takes for made once it is.
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
