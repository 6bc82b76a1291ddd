"""LARS (You, Gitman and Ginsburg 2017): SGD whose step is scaled to the size of each matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

TRUST, MOMENTUM = 0.001, 0.9


class Lars(torch.optim.Optimizer):
    """Give each matrix a step of `TRUST` of its own norm, whatever the norm of its gradient.

    Vectors (biases, norms) take plain steps of SGD with momentum and are never decayed. A matrix
    of zeros, or a gradient of zeros, is not scaled.

    Args:
        params: what is trained.
        lr: learning rate, which the loop sets before each step.
        momentum: share of the last update that is kept.
        weight_decay: added to the gradient of matrices before it is scaled.

    Source: paper, Table 10; the published steps (golden test).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = _scaled(parameter, group["weight_decay"])
                # A rate that changes moves the whole sum, not only what is added to it.
                total = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                total.mul_(group["momentum"]).add_(update)
                parameter.add_(total, alpha=-group["lr"])


def _scaled(parameter: nn.Parameter, weight_decay: float) -> Tensor:
    assert parameter.grad is not None
    if parameter.ndim <= 1:
        return parameter.grad
    update = parameter.grad + weight_decay * parameter
    size, change = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
    # A tensor all the way: reading the norms back would stop the host in every step.
    return update * torch.where((size > 0) & (change > 0), TRUST * size / change, 1.0)
