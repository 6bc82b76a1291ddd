"""Transformer blocks shared by encoder and decoder: pre-norm, fused qkv, exact GELU.

Submodule names are those of timm (`norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae.config.model import ModelConfig, hidden_width
from mae.model.onednn_linear import Linear
from mae.model.packed_attention import attend_packed, takes_packed
from mae.model.processor import mkl_is_narrow

# Up to this many tokens, explicit products are faster than torch's fused kernel on processors that
# are not Intel's (docs/decisions/0008-attention-of-few-tokens.md); both agree up to rounding.
FEW_TOKENS = 64 if mkl_is_narrow() else 0

Bias = Callable[[Tensor], Tensor]
"""Returns what is added to the attention logits, broadcast to B heads T T, from the queries
B heads T d (see `mae.model.dense.relative`)."""


class Windows(Protocol):
    """How the tokens of a block are divided before attention (see `mae.model.dense.windows`)."""

    def split(self, tokens: Tensor) -> Tensor:
        """Divide B T D into windows of their own."""
        ...

    def join(self, tokens: Tensor) -> Tensor:
        """Put windows together again: the inverse of `split`."""
        ...


class Attention(nn.Module):
    """Multi-head self-attention over B T D."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, tokens: Tensor, *, first: int = 0, bias: Bias | None = None) -> Tensor:
        """Attend from the tokens from `first` on to all tokens: B T D to B T-first D.

        Args:
            tokens: B T D.
            first: tokens before this index are attended to but not returned.
            bias: adds to the logits; None: nothing.
        """
        B, T, D = tokens.shape
        qkv = self._packed(tokens)
        if bias is None and takes_packed(qkv):
            mixed = attend_packed(qkv, first=first)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            added = None if bias is None else bias(q)[..., first:, :]
            mixed = attend(q[:, :, first:], k, v, added).transpose(1, 2)
        return self.proj(mixed.reshape(B, T - first, D))  # type: ignore[no-any-return]

    def split(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values: 3 B heads T d."""
        return self._packed(tokens).permute(2, 0, 3, 1, 4)

    def _packed(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values as the linear layer gives them: B T 3 heads d."""
        B, T, D = tokens.shape
        return self.qkv(tokens).reshape(B, T, 3, self.num_heads, D // self.num_heads)  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: q, k and v, B heads T d each, to B heads T d.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scaled products, broadcast to B heads T T; None: nothing.
    """
    T = k.shape[2]
    # A symbolic T of an exported graph is not compared: the comparison would add a guard.
    if q.device.type == "cpu" and isinstance(T, int) and T <= FEW_TOKENS:
        logits: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        return (logits if bias is None else logits + bias).softmax(dim=-1).matmul(v)
    # The fused kernel takes the bias in the type of the queries.
    return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform each token independently: B T D to B T D."""
        return self.fc2(self.fc1(tokens, gelu=True))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden=hidden_width(width, mlp_ratio))

    def forward(
        self,
        tokens: Tensor,
        *,
        first: int = 0,
        scales: Tensor | None = None,
        bias: Bias | None = None,
        windows: Windows | None = None,
    ) -> Tensor:
        """Attend to all tokens, return those from `first` on: B T D to B T-first D.

        Args:
            tokens: B T D.
            first: tokens before this index are attended to but not returned.
            scales: B 2 1 or B 2 D, factors of the attention and MLP branches (see `drop_scales`).
            bias: adds to the attention logits; None: nothing.
            windows: the windows that tokens attend within; None: all tokens, which `first` needs.
        """
        mixed = self.norm1(tokens)
        if windows is not None:
            mixed = windows.split(mixed)
        mixed = self.attn(mixed, first=first, bias=bias)
        if windows is not None:
            mixed = windows.join(mixed)
        tokens = tokens[:, first:] + (mixed if scales is None else mixed * scales[:, :1])
        changed = self.mlp(self.norm2(tokens))
        return tokens + (changed if scales is None else changed * scales[:, 1:])  # type: ignore[no-any-return]

    def attention(self, tokens: Tensor) -> Tensor:
        """Return the attention weights of the block, B heads T T float32, for its input B T D."""
        q, k, _ = self.attn.split(self.norm1(tokens)).float()
        shares: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return shares


class Blocks(nn.ModuleList):
    """A sequence of transformer blocks with optional activation checkpointing."""

    checkpoint_every: int | None = None
    """Blocks of a segment of which only the input is kept for the backward pass; None: no
    checkpointing.

    It changes memory and time but not the results, so it is not part of `ModelConfig` or of
    weight files.
    """

    def __init__(self, config: ModelConfig, width: int, *, depth: int, num_heads: int) -> None:
        how = {"mlp_ratio": config.mlp_ratio, "norm_eps": config.norm_eps}
        super().__init__(Block(width, num_heads=num_heads, **how) for _ in range(depth))

    def forward(self, tokens: Tensor, *, first: int = 0, scales: Tensor | None = None) -> Tensor:
        """Apply all blocks: B T D to B T-first D.

        Args:
            tokens: B T D.
            first: tokens before this index are attended to but not returned by the last block.
            scales: B 2*depth, factors of the residual branches (see `Block`).
        """
        every = self.checkpoint_every
        if every is None or not (self.training and torch.is_grad_enabled()):
            return self._run(tokens, 0, len(self), first=first, scales=scales)
        for start in range(0, len(self), every):
            # Blocks draw no random numbers, so no generator state has to be preserved.
            tokens = checkpoint(
                self._run, tokens, start, start + every, first=first, scales=scales,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
        return tokens

    def _run(
        self, tokens: Tensor, start: int, stop: int, *, first: int, scales: Tensor | None
    ) -> Tensor:
        for i in range(start, min(stop, len(self))):
            own = None if scales is None else scales[:, 2 * i : 2 * i + 2, None]
            tokens = self[i](tokens, first=first if i == len(self) - 1 else 0, scales=own)
        return tokens


def drop_scales(draws: Tensor, *, rate: float) -> Tensor:
    """Turn random draws into factors of the residual branches: 0 or 1 / keep probability.

    Args:
        draws: B 2*depth, uniform in [0, 1): attention and MLP of each block.
        rate: drop probability of the last block; it rises linearly from 0 at the first.

    Returns:
        B 2*depth.

    Source: stochastic depth (Huang et al. 2016), per sample, as in timm.
    """
    depth = draws.shape[1] // 2
    keep = 1 - torch.linspace(0, rate, depth, device=draws.device).repeat_interleave(2)
    return (draws < keep) / keep


def init_published(module: nn.Module) -> None:
    """Initialise linear layers by Xavier uniform with zero bias, layer norms by 1 and 0.

    As in the published code, the fan of the fused qkv is that of one (3D, D) matrix, not of three
    (D, D) ones.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
