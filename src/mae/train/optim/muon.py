"""Muon optimizer (Jordan et al. 2024) for the matrices of blocks, AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

STEPS = 5
"""Number of Newton-Schulz iterations."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of s (a + b s^2 + c s^4), which maps 0.01 to 1 to near 1 in `STEPS` iterations."""
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Orthogonalize the updates of marked matrices; update all other parameters by AdamW.

    Groups with nonzero `parts` hold matrices that are each split into that many parts (3 for a
    fused query, key and value); they use `lr` and `weight_decay`. AdamW updates every other
    group. Muon's steps have the root mean square of AdamW's, so learning rate and weight decay
    have the same meaning in both.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
    root mean square by Liu et al., arXiv 2502.16982, section 2.2. Beyond the paper.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["parts"]]
            super().step()
        finally:
            self.param_groups = groups
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in groups:
            for parameter in group["params"] if group["parts"] else ():
                if parameter.grad is None:
                    continue
                ahead = self._ahead(parameter, parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                both = (tensor.chunk(group["parts"]) for tensor in (parameter, ahead))
                for part, update in zip(*both, strict=True):
                    turned = (t if t.shape[0] <= t.shape[1] else t.mT for t in (part, update))
                    alike[tuple(sorted(part.shape))].append((*turned, group["lr"]))
        # Batch matrices of the same shape: separate small products take three times as long.
        for (_, longer), steps in alike.items():
            parts, updates, rates = zip(*steps, strict=True)
            for part, update, rate in zip(parts, evened(torch.stack(updates)), rates, strict=True):
                # With all singular values at 1, the root mean square is sqrt(1 / longer side).
                part.add_(update, alpha=-0.2 * rate * math.sqrt(longer))

    def _ahead(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Add a gradient to the momentum and return the Nesterov update."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # unused, but loading expects AdamW's "step"
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def evened(matrices: Tensor) -> Tensor:
    """Orthogonalize matrices by Newton-Schulz iterations: all singular values near 1.

    Args:
        matrices: K m n with m <= n. Multiplied in bf16 where the device has fast bf16 products;
            the lower precision is sufficient here.

    Returns:
        K m n of the same type; a matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    wide: Tensor = (matrices / (norms + 1e-7)).to(_product_dtype(matrices))
    for _ in range(STEPS):
        square = wide @ wide.mT
        mixed = torch.baddbmm(square, square, square, beta=b, alpha=c)
        wide = torch.baddbmm(wide, mixed, wide, beta=a)
    return wide.to(matrices.dtype)


def _product_dtype(matrices: Tensor) -> torch.dtype:
    fast = matrices.is_cuda or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if fast and matrices.dtype == torch.float32 else matrices.dtype
