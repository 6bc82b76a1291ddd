"""The published PyTorch layout, written from its description and from nothing of ours."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor


def block_shapes(width: int, *, mlp: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (mlp * width, width),
        "mlp.fc1.bias": (mlp * width,),
        "mlp.fc2.weight": (width, mlp * width),
        "mlp.fc2.bias": (width,),
    }


def encoder_shapes(
    width: int, depth: int, *, patch: int, patches: int, channels: int = 3
) -> dict[str, tuple[int, ...]]:
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{
            f"blocks.{i}.{name}": shape
            for i in range(depth)
            for name, shape in block_shapes(width).items()
        },
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


def decoder_shapes(
    width: int, depth: int, *, encoder: int, patch: int, patches: int, channels: int = 3
) -> dict[str, tuple[int, ...]]:
    return {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, patches + 1, width),
        "decoder_embed.weight": (width, encoder),
        "decoder_embed.bias": (width,),
        **{
            f"decoder_blocks.{j}.{name}": shape
            for j in range(depth)
            for name, shape in block_shapes(width).items()
        },
        "decoder_norm.weight": (width,),
        "decoder_norm.bias": (width,),
        "decoder_pred.weight": (patch * patch * channels, width),
        "decoder_pred.bias": (patch * patch * channels,),
    }


def filled(shapes: dict[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# 3 x 3 patches of 4 x 4 pixels. The encoder has Ti's width, so that its heads are known.
def encoder_only(*, width: int = 192) -> dict[str, Tensor]:
    return filled(encoder_shapes(width, 2, patch=4, patches=9))


def full(*, width: int = 192, decoder: int = 192, channels: int = 3) -> dict[str, Tensor]:
    return filled(
        encoder_shapes(width, 2, patch=4, patches=9, channels=channels)
        | decoder_shapes(decoder, 1, encoder=width, patch=4, patches=9, channels=channels)
    )


def checkpoint(path: Path, model: dict[str, Tensor], **arguments: object) -> Path:
    """Write what the published training script leaves: the model among a run's other state."""
    args = Namespace(
        batch_size=64, norm_pix_loss=True, mask_ratio=0.6, output_dir="./output_dir", world_size=1
    )
    vars(args).update(arguments)
    torch.save(
        {
            "model": model,
            "optimizer": {
                "state": {0: {"step": torch.tensor(3.0)}},
                "param_groups": [{"lr": 1e-3}],
            },
            "epoch": 7,
            "scaler": {"scale": 65536.0},
            "args": args,
        },
        path,
    )
    return path
