"""Linear layers that use oneDNN matrix products: in bf16, and in float32 where MKL is slower."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mae.model.processor import mkl_is_narrow


class Multiplier(nn.Module):
    """A layer that multiplies by one matrix."""

    bf16_matrix: Tensor | None = None
    """O I, a copy of `matrix` within `HalfWeights`; neither a parameter nor a buffer."""

    def matrix(self) -> Tensor:
        """Return the matrix: O I."""
        raise NotImplementedError


class Linear(nn.Linear, Multiplier):
    """Drop-in `torch.nn.Linear`: same parameters, names and results up to rounding."""

    def matrix(self) -> Tensor:
        """Return the weight: O I."""
        return self.weight

    def forward(self, tokens: Tensor, *, gelu: bool = False) -> Tensor:
        """Transform the last axis, I to O; with `gelu`, apply the exact GELU to the result."""
        return linear(tokens, self.weight, self.bias, bf16=self.bf16_matrix, gelu=gelu)


class HalfWeights:
    """bf16 copies of the matrices of a model on a CPU, made each time the block is entered.

    Within the block, layers under CPU autocast to bf16 multiply by the copies, so that a step
    casts each weight once and not once a micro-batch; gradients reach the float32 parameters.
    The weights must not change within the block. Threads may share it; autocast is per thread.
    Nothing changes on other devices or where oneDNN has no bf16.

    Source: docs/decisions/0023-bf16-on-cpus.md.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._copies: list[tuple[Multiplier, Tensor]] = []  # memory is used again
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return
        for part in model.modules():
            if not isinstance(part, Multiplier):
                continue
            matrix = part.matrix()
            if matrix.device.type == "cpu" and matrix.dtype == torch.float32:
                empty = torch.empty(matrix.shape, dtype=torch.bfloat16)
                self._copies.append((part, empty))

    def __enter__(self) -> None:
        with torch.no_grad():
            for part, copy in self._copies:
                part.bf16_matrix = copy.copy_(part.matrix())

    def __exit__(self, *_: object) -> None:
        for part, _copy in self._copies:
            part.bf16_matrix = None


def linear(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    bf16: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Multiply the last axis by a weight O I and add a bias O: ... I to ... O.

    oneDNN multiplies on a CPU in bf16, under autocast and by a copy of the weight, and in float32
    with AVX-512 that is not Intel's: torch's default there, MKL, uses half the vector width
    (docs/decisions/0017-products-by-onednn.md). All other and all traced calls use `F.linear`.
    The oneDNN path supports neither double backward nor `torch.func`;
    `torch.backends.mkldnn.set_flags(False)` disables it.

    Args:
        tokens: ... I.
        weight: O I, receives the gradient.
        bias: O.
        bf16: O I, the weight in bf16 (see `HalfWeights`).
        gelu: whether to apply the exact GELU; where no gradient is needed, within the product.
    """
    factor = _by_onednn(tokens, weight, bf16)
    if factor is None:
        sums = F.linear(tokens, weight, bias)
        return F.gelu(sums) if gelu else sums
    rows = tokens.to(factor.dtype).reshape(-1, tokens.shape[-1])
    if gelu and not torch.is_grad_enabled():
        sums, gelu = product(rows, factor, bias, gelu=True), False
    else:
        sums = _OneDnnLinear.apply(rows, weight, factor, bias)
    if tokens.ndim != 2:  # FSDP2 warns of a module that returns a view
        sums = sums.view(*tokens.shape[:-1], -1)
    return F.gelu(sums) if gelu else sums


def _by_onednn(tokens: Tensor, weight: Tensor, bf16: Tensor | None) -> Tensor | None:
    """Return the matrix that oneDNN multiplies by; None where it does not multiply."""
    if not onednn_applies(tokens):
        return None
    if torch.is_autocast_enabled("cpu"):
        return bf16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and mkl_is_narrow()
    return weight if wide and tokens.dtype == weight.dtype == torch.float32 else None


def onednn_applies(tensor: Tensor) -> bool:
    """Return whether operators of oneDNN can be called: on a CPU, not compiled, traced or empty."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and tensor.numel() > 0
    )


class _OneDnnLinear(torch.autograd.Function):
    """Linear layer by oneDNN: the output, and the gradients of rows, weight and bias."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, factor: Tensor, bias: Tensor) -> Tensor:
        by_rows, by_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(rows if by_weight else None, factor if by_rows else None)
        ctx.dtype = weight.dtype
        return product(rows, factor, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, factor = ctx.saved_tensors
        by_rows, by_weight, _, by_bias = ctx.needs_input_grad
        return (
            product(grad, factor.t()) if by_rows else None,
            _weight_gradient(grad, rows).to(ctx.dtype) if by_weight else None,
            None,  # the factor is the weight, or its copy
            grad.sum(dim=0).to(ctx.dtype) if by_bias else None,  # bf16: rounded once
        )


def _weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """Multiply the transpose of M O by M I: O I."""
    if grad.dtype == torch.bfloat16:
        return torch.mm(grad.t(), rows)  # oneDNN's, which reads transposed factors in place
    (M, O), I = grad.shape, rows.shape[1]  # noqa: E741
    # oneDNN copies the transposed left factor: put the narrower one left where transposing the
    # result costs less.
    if M * (O - I) > O * I:
        return product(rows.t(), grad.t()).t().contiguous()
    return product(grad.t(), rows.t())


def product(
    left: Tensor, right: Tensor, bias: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """Multiply M I by the transpose of O I, add a bias O, apply the exact GELU if asked: M O."""
    # The operator that torch.compile emits for a linear layer; "none" is the exact GELU.
    then = "gelu" if gelu else "none"
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, then, [], "none")  # type: ignore[no-any-return]
