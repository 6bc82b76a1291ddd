"""The step as the paper describes it, with nothing saved: what ours has to equal.

Every patch goes through the stored convolution, the tokens are put back in their places for the
decoder, every block sees and gives every token, every patch is predicted and has a target, and the
loss is masked. Only the parameters are the model's; attention, norms and GELU are written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.model.autoencoder import MaskedAutoencoder
from mae.model.transformer import Attention, Block

NORM_EPS = 1e-6  # as published


def plain_loss(model: MaskedAutoencoder, images: Tensor, *, noise: Tensor) -> Tensor:
    """Give the loss of rebuilding what noise B L hides of images B C H W, a scalar."""
    encoder, decoder = model.encoder, model.decoder
    (B, L), K = noise.shape, model.objective.num_keep(model.config.num_patches)
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)  # B L

    projected = encoder.patch_embed.proj(images).flatten(2).mT  # B L D
    visible = _named(projected + encoder.pos_embed[:, 1:], ids_shuffle[:, :K])  # B K D
    cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(B, -1, -1)
    latent = plain_blocks(encoder.blocks, torch.cat([cls, visible], dim=1))
    embedded = decoder.embed(plain_norm(encoder.norm, latent))  # B 1+K E

    shuffled = torch.cat([embedded[:, 1:], decoder.mask_token.expand(B, L - K, -1)], dim=1)
    restored = torch.cat([embedded[:, :1], _named(shuffled, ids_restore)], dim=1)  # B 1+L E
    tokens = plain_blocks(decoder.blocks, restored + decoder.pos_embed)
    pred = decoder.pred(plain_norm(decoder.norm, tokens))[:, 1:]  # B L P
    return masked_mean_error(pred, plain_target(model, images), ids_restore >= K)


def masked_mean_error(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Average the squared errors B L P over the patches that the mask B L names, a scalar."""
    per_patch = (pred - target).square().mean(dim=-1)  # B L
    return (per_patch * mask).sum() / mask.sum()


def plain_target(model: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Give the target of every patch, B L P."""
    p, C = model.config.patch_size, model.config.channels
    # Unfolded values are ordered channel, row, column; the published ones row, column, channel.
    patches = F.unfold(images, p, stride=p).mT.unflatten(2, (C, p * p)).mT.flatten(2)
    if not model.objective.normalize_target:
        return patches
    centred = patches - patches.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (p * p * C - 1)
    return centred / (variance + model.objective.target_eps).sqrt()


def plain_blocks(blocks: Iterable[nn.Module], tokens: Tensor) -> Tensor:
    """Run pre-norm blocks over every token, B T D."""
    for block in blocks:
        assert isinstance(block, Block)
        tokens = tokens + plain_attention(block.attn, plain_norm(block.norm1, tokens))
        hidden = block.mlp.fc1(plain_norm(block.norm2, tokens))
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + block.mlp.fc2(gelu)
    return tokens


def plain_attention(attention: Attention, tokens: Tensor) -> Tensor:
    """Mix the tokens of each image head by head, B T D."""
    width = tokens.shape[-1] // attention.num_heads
    q, k, v = attention.qkv(tokens).chunk(3, dim=-1)
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(width)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return attention.proj(torch.cat(heads, dim=-1))


def plain_norm(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Normalise each token, B T D."""
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + NORM_EPS).sqrt()
    return centred / deviation * norm.weight + norm.bias


def _named(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take tokens by name, image by image: B T D and B K give B K D."""
    return torch.stack([own[order] for own, order in zip(tokens, ids, strict=True)])
