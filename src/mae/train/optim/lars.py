"""LARS optimizer (You, Gitman and Ginsburg 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

TRUST, MOMENTUM = 0.001, 0.9


class Lars(torch.optim.Optimizer):
    """SGD with momentum that scales the step of each matrix to `TRUST` times its norm.

    Vectors (biases, norms) take plain SGD steps with momentum and are never decayed. The step is
    not scaled where the matrix or its update is all zeros.

    Args:
        params: the trained parameters, or groups of them.
        lr: learning rate, set by the training loop before each step.
        momentum: factor of the momentum buffer in each step.
        weight_decay: added to the gradient of matrices before it is scaled.

    Source: He et al. 2021, Table 10; matches the steps of the published code (golden test).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
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
                # The learning rate scales the whole momentum buffer, not each added update.
                total = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                total.mul_(group["momentum"]).add_(update)
                parameter.add_(total, alpha=-group["lr"])


def _scaled(parameter: nn.Parameter, weight_decay: float) -> Tensor:
    assert parameter.grad is not None
    if parameter.ndim <= 1:
        return parameter.grad
    update = parameter.grad + weight_decay * parameter
    size, change = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
    # Kept as tensors: reading the norms back would synchronise with the device in every step.
    return update * torch.where((size > 0) & (change > 0), TRUST * size / change, 1.0)
