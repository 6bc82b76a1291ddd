from __future__ import annotations

import math

import torch
from torch import Tensor

from mae.model.transformer import Attention, Block
from tests.model.tiny import scrambled


def written_out_attention(attention: Attention, tokens: Tensor) -> Tensor:
    width = tokens.shape[-1] // attention.num_heads
    q, k, v = attention.qkv(tokens).chunk(3, dim=-1)
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(width)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return attention.proj(torch.cat(heads, dim=-1))


def written_out_norm(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def test_attention_equals_attention_written_out(generator):
    attention = scrambled(Attention(24, num_heads=3), generator).double()
    tokens = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)

    mixed = attention(tokens)

    torch.testing.assert_close(mixed, written_out_attention(attention, tokens), rtol=0, atol=1e-12)


def test_a_block_equals_a_pre_norm_block_written_out(generator):
    block = scrambled(Block(24, num_heads=3, mlp_ratio=4.0), generator).double()
    tokens = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)

    after = block(tokens)

    norm1 = written_out_norm(tokens, block.norm1.weight, block.norm1.bias)
    attended = tokens + written_out_attention(block.attn, norm1)
    norm2 = written_out_norm(attended, block.norm2.weight, block.norm2.bias)
    hidden = block.mlp.fc1(norm2)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = attended + block.mlp.fc2(gelu)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
