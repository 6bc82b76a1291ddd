"""Linear layers that use oneDNN matrix products on CPUs where torch's own are slower."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_INFO = Path("/proc/cpuinfo")


class Linear(nn.Linear):
    """Drop-in `torch.nn.Linear`: same parameters, names and results up to rounding."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform the last axis: ... I to ... O."""
        return linear(tokens, self.weight, self.bias)


def linear(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply the last axis by a weight O I and add a bias O: ... I to ... O.

    On a CPU with AVX-512 that is not Intel's, float32 products use oneDNN instead of torch's
    default MKL, which uses only half the vector width there
    (docs/decisions/0017-products-by-onednn.md). All other and all traced calls use `F.linear`.
    The oneDNN path supports neither double backward nor `torch.func`;
    `torch.backends.mkldnn.set_flags(False)` disables it.
    """
    if not _by_onednn(tokens, weight):
        return F.linear(tokens, weight, bias)
    rows = tokens.reshape(-1, tokens.shape[-1])
    return _OneDnnLinear.apply(rows, weight, bias).view(*tokens.shape[:-1], -1)  # type: ignore[no-any-return]


def _by_onednn(tokens: Tensor, weight: Tensor) -> bool:
    return bool(
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and mkl_is_narrow()
        and tokens.numel() > 0
    )


@cache
def mkl_is_narrow() -> bool:
    """Return whether MKL uses only half of this processor's AVX-512: one known not to be Intel's.

    The vendor decides and not a measurement, so that a run repeats bit for bit.
    """
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    vendors = {line.split()[-1] for line in lines if line.startswith("vendor_id")}
    return bool(vendors) and "GenuineIntel" not in vendors


class _OneDnnLinear(torch.autograd.Function):
    """Linear layer by oneDNN: the output, and the gradients of rows and weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        by_rows, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if by_weight else None, weight if by_rows else None)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if wanted[0] else None,
            _weight_gradient(grad, rows) if wanted[1] else None,
            grad.sum(dim=0) if wanted[2] else None,
        )


def _weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """Multiply the transpose of M O by M I: O I."""
    (M, O), I = grad.shape, rows.shape[1]  # noqa: E741
    # oneDNN copies the transposed left factor: put the narrower one left where transposing the
    # result costs less.
    if M * (O - I) > O * I:
        return product(rows.t(), grad.t()).t().contiguous()
    return product(grad.t(), rows.t())


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply M I by the transpose of O I: M O."""
    # The operator that torch.compile emits for a linear layer; here without fusion.
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]
