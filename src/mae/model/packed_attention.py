"""Attention from packed queries, keys and values by batched bf16 products of oneDNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mae.model.onednn_linear import onednn_applies
from mae.model.processor import multiplies_bf16

# More tokens go to torch's fused kernel, whose backward pass in bf16 is several times slower for
# few tokens (docs/decisions/0008-attention-of-few-tokens.md).
MOST_TOKENS = 512 if multiplies_bf16() else 0
KEPT_TOKENS = 64
"""Up to this many tokens the weights are kept for the backward pass; else they are computed again,
so that memory grows with T and not with T^2."""
CHUNK_BYTES = 2 << 20  # attention weights of the images of one product: they stay in the cache


def takes_packed(qkv: Tensor) -> bool:
    """Return whether `attend_packed` is the faster way for B T 3 heads d."""
    return onednn_applies(qkv) and qkv.dtype == torch.bfloat16 and qkv.shape[1] <= MOST_TOKENS


def attend_packed(qkv: Tensor, *, first: int = 0) -> Tensor:
    """Scaled dot-product attention of the tokens from `first` on to all tokens.

    Supports neither double backward nor `torch.func`.

    Args:
        qkv: B T 3 heads d: queries, keys, values.
        first: tokens before this index are attended to but not returned.

    Returns:
        B T-first heads d.
    """
    return _Packed.apply(qkv, first)  # type: ignore[no-any-return]


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, first: int) -> Tensor:
        B, T, _, heads, d = qkv.shape
        mixed = qkv.new_empty(B, T - first, heads, d)
        kept = []
        for part in _chunks(qkv):
            q, k, v = _by_head(qkv[part])
            shares = _shares(q[:, first:], k)
            mixed[part] = _by_image(torch.bmm(shares, v), heads)
            if T <= KEPT_TOKENS and ctx.needs_input_grad[0]:
                kept.append(shares)
        ctx.save_for_backward(qkv, *kept)
        ctx.first = first
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, *kept = ctx.saved_tensors
        first: int = ctx.first
        heads, d = qkv.shape[3:]
        grad_qkv = torch.empty_like(qkv)
        grad_qkv[:, :first, 0] = 0
        for i, part in enumerate(_chunks(qkv)):
            q, k, v = _by_head(qkv[part])
            q = q[:, first:]
            shares = kept[i] if kept else _shares(q, k)
            (mixed,) = _by_head(grad[part].unsqueeze(2))
            of_shares = torch.bmm(mixed, v.mT)
            logits = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            grad_qkv[part, first:, 0] = _by_image(_scaled(logits, k, d), heads)
            grad_qkv[part, :, 1] = _by_image(_scaled(logits.mT, q, d), heads)
            grad_qkv[part, :, 2] = _by_image(torch.bmm(shares.mT, mixed), heads)
        return grad_qkv, None


def _chunks(qkv: Tensor) -> Iterator[slice]:
    """Divide the images so that the attention weights of a part fit into the cache."""
    B, T, _, heads, _ = qkv.shape
    count = max(1, CHUNK_BYTES // (heads * T * T * qkv.element_size()))
    return (slice(start, start + count) for start in range(0, B, count))


def _by_head(packed: Tensor) -> Tensor:
    """B T n heads d to n B*heads T d, in one copy: products would copy a view, each anew."""
    B, T, n, heads, d = packed.shape
    return packed.permute(2, 0, 3, 1, 4).contiguous().view(n, B * heads, T, d)


def _by_image(each: Tensor, heads: int) -> Tensor:
    """B*heads T d to B T heads d, a view."""
    return each.view(-1, heads, *each.shape[1:]).transpose(1, 2)


def _shares(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention weights: n T' T."""
    return _scaled(q, k.mT, q.shape[2]).softmax(dim=-1)


def _scaled(left: Tensor, right: Tensor, d: int) -> Tensor:
    """Multiply n matrices and scale by 1 / sqrt(d) before the result is rounded."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=d**-0.5)
