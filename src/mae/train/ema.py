"""Exponential moving average of the weights, stored in the optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_KEY = "average"  # of the optimizer state, and part of the names in checkpoints


@contextmanager
@torch.no_grad()
def update_ema(optimizer: torch.optim.Optimizer, *, decay: float | None) -> Iterator[None]:
    """Update the average after the optimiser step inside this context.

    The average starts at the weights before the first step; each step computes
    decay * average + (1 - decay) * weights.

    Args:
        optimizer: its state holds the average of each parameter.
        decay: 0 to 1; none: no average.
    """
    if decay is None:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Stored only after the first step: the optimiser takes a nonempty state as initialised.
    before = {p: p.clone() for p in parameters if _KEY not in optimizer.state.get(p, {})}
    yield
    updated = [p for p in parameters if p.grad is not None]
    averages = [optimizer.state[p].setdefault(_KEY, before.get(p)) for p in updated]
    if updated:
        torch._foreach_lerp_(averages, updated, 1 - decay)


@torch.no_grad()
def apply_ema(optimizer: torch.optim.Optimizer) -> None:
    """Set the parameters to their averages, where there are any, in place."""
    for parameter, state in optimizer.state.items():
        if _KEY in state:
            parameter.copy_(state[_KEY])
