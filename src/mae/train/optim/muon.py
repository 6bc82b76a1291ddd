"""Muon optimizer (Jordan et al. 2024) for the matrices of blocks, AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn

from mae.planning.hardware import has_bf16

STEPS = 5
"""Number of Newton-Schulz iterations."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of s (a + b s^2 + c s^4), which maps 0.01 to 1 to near 1 in `STEPS` iterations."""
MOMENTUM = 0.95
Kind = tuple[torch.Size, float, float]
"""Shape, learning rate and weight decay of matrices that are updated together."""


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
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, pool: Executor | None = None
    ) -> None:
        """Update every parameter that has a gradient; a closure is not supported.

        Args:
            closure: none.
            pool: its threads update matrices in parallel, to the same result.
        """
        assert closure is None
        # Batch matrices of the same shape: separate small products take three times as long.
        alike: dict[Kind, list[tuple[Tensor, ...]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"] if group["parts"] else ():
                if parameter.grad is None:
                    continue
                whole = (parameter, parameter.grad, self._momentum(parameter))
                if hasattr(parameter, "full_tensor"):
                    _update_sharded(*whole, group)
                    continue
                for part in zip(*(t.chunk(group["parts"]) for t in whole), strict=True):
                    alike[part[0].shape, group["lr"], group["weight_decay"]].append(part)
        updated = (map if pool is None else pool.map)(_update, alike.items())
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["parts"]]
            super().step()
        finally:
            self.param_groups = groups
        for _ in updated:
            pass

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # unused, but loading expects AdamW's "step"
        return state["momentum"]  # type: ignore[no-any-return]


@torch.no_grad()  # of each thread
def _update(alike: tuple[Kind, list[tuple[Tensor, ...]]]) -> None:
    """Update matrices of a kind and their momenta by their gradients."""
    (shape, lr, weight_decay), parts = alike
    matrices, gradients, momenta = zip(*parts, strict=True)
    torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
    ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
    torch._foreach_mul_(matrices, 1 - lr * weight_decay)
    # With all singular values at 1, the root mean square is sqrt(1 / longer side).
    factor = -0.2 * lr * math.sqrt(max(shape))
    torch._foreach_add_(matrices, evened(torch.stack(ahead)).unbind(), alpha=factor)


def _update_sharded(parameter: Any, gradient: Any, momentum: Any, group: Mapping[str, Any]) -> None:
    """Update this rank's rows of a matrix, a DTensor; a collective.

    The whole update is computed by each rank from the gathered matrix, one at a time to save
    memory.
    """
    lr, parts = group["lr"], group["parts"]
    momentum.lerp_(gradient, 1 - MOMENTUM)
    ahead = gradient.lerp(momentum, MOMENTUM).full_tensor()
    matrices = torch.stack(ahead.chunk(parts))
    factor = -0.2 * lr * math.sqrt(max(matrices.shape[1:]))
    mesh, own = parameter.device_mesh, parameter.to_local()
    rows = evened(matrices).flatten(0, 1).chunk(mesh.size())
    own.mul_(1 - lr * group["weight_decay"])
    if len(own):  # with more ranks than rows, the last have none
        own.add_(rows[mesh.get_local_rank()], alpha=factor)


def evened(matrices: Tensor) -> Tensor:
    """Orthogonalize matrices by Newton-Schulz iterations: all singular values near 1.

    Args:
        matrices: K m n. Multiplied in bf16 where the device has fast bf16 products; the lower
            precision is sufficient here.

    Returns:
        K m n of the same type; a matrix of zeros stays zero.
    """
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    scaled = (matrices / (norms + 1e-7)).to(_product_dtype(matrices))
    tall = scaled.shape[1] > scaled.shape[2]
    wide = scaled.mT if tall else scaled
    if scaled.dtype == torch.bfloat16 or wide.shape[2] < 2 * wide.shape[1]:
        found = _iterated(wide)
        found = found.mT if tall else found
        # Multi-tensor additions on a GPU need the strides of the weights.
        return found.to(matrices.dtype, memory_format=torch.contiguous_format)
    # Every iterate is a polynomial of the Gram matrix times the first: iterate on that square
    # polynomial. It squares the singular values, which takes more digits than bf16 has.
    gram = wide @ wide.mT
    polynomial = _iterated(torch.eye(len(gram[0])).to(gram).expand_as(gram), gram=gram)
    return torch.bmm(*((scaled, polynomial) if tall else (polynomial, scaled)))


def _iterated(wide: Tensor, *, gram: Tensor | None = None) -> Tensor:
    """Iterate on K m n; with `gram`, on the symmetric factor K m m of matrices of that Gram."""
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = (wide if gram is None else wide @ gram) @ wide.mT
        mixed = torch.baddbmm(square, square, square, beta=b, alpha=c)
        wide = torch.baddbmm(wide, mixed, wide, beta=a)
    return wide


def _product_dtype(matrices: Tensor) -> torch.dtype:
    fast = matrices.dtype == torch.float32 and has_bf16(matrices.device)
    return torch.bfloat16 if fast else matrices.dtype
