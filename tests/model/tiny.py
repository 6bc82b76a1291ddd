"""Tiny models for tests, with weights that hide nothing: no bias is 0, no norm is 1."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mae.config.model import ModelConfig, PixelConfig
from mae.model.autoencoder import MaskedAutoencoder

Module = TypeVar("Module", bound=nn.Module)

B, C, P_EDGE, GRID, D, E = 2, 3, 4, (3, 5), 24, 16  # distinct, so that no transpose goes unseen


def tiny_config(**fields: Any) -> ModelConfig:
    """3 x 5 patches of 4 x 4 x 3, of which 3 are kept."""
    channels = fields.get("channels", C)
    grid = fields.pop("grid", GRID)
    patch_size = fields.get("patch_size", P_EDGE)
    given = {
        "image_size": (grid[0] * patch_size, grid[1] * patch_size),
        "patch_size": P_EDGE,
        "width": D,
        "depth": 2,
        "num_heads": 3,
        "decoder_width": E,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "mask_ratio": 0.8,
        "pixels": PixelConfig(mean=(0.5,) * channels, std=(0.25,) * channels),
    }
    return ModelConfig(**(given | fields))


def tiny_model(generator: torch.Generator, **fields: Any) -> MaskedAutoencoder:
    return scrambled(MaskedAutoencoder(tiny_config(**fields)), generator)


def scrambled(module: Module, generator: torch.Generator) -> Module:
    """Draw every parameter but the position tables."""
    for name, parameter in module.named_parameters():
        if "pos_embed" not in name:
            drawn = 0.2 * torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
            parameter.data = drawn + is_norm
    return module


def batch(
    generator: torch.Generator, config: ModelConfig, *, images: int = B
) -> tuple[Tensor, Tensor]:
    """Draw normalised images B C H W and noise B L."""
    drawn = torch.randn(images, config.channels, *config.image_size, generator=generator)
    return drawn, torch.rand(images, config.num_patches, generator=generator)
