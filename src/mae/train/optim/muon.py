"""Muon (Jordan 2024): the step of a matrix has all its singular values near one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

STEPS = 5
"""Of the iteration that evens the singular values."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of its polynomial s (a + b s^2 + c s^4), which takes 0.01 to 1 to near 1 in that many steps."""
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Even the singular values of each step of the matrices marked; AdamW updates the rest.

    A group whose `parts` is not 0 holds matrices, each of that many side by side (3 in a fused
    query, key and value); it uses `lr` and `weight_decay`. Every other group is AdamW's. Steps
    have the root mean square of AdamW's, so that rate and weight decay mean the same in both.

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
        # Those of one shape in one product: many small ones would take three times as long.
        for (_, longer), steps in alike.items():
            parts, updates, rates = zip(*steps, strict=True)
            for part, update, rate in zip(parts, evened(torch.stack(updates)), rates, strict=True):
                # Singular values of one make a root mean square of sqrt(1 / longer side).
                part.add_(update, alpha=-0.2 * rate * math.sqrt(longer))

    def _ahead(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Add a gradient to the momentum, and give where that goes, as Nesterov has it."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # not used, but loading looks for AdamW's
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def evened(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near to one, and keep their directions.

    Args:
        matrices: K m n with m <= n. Multiplied in bf16 where the device is fast at it, which is
            exact enough for a direction.

    Returns:
        K m n of the same type; zeros where there is nothing but zeros.
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
