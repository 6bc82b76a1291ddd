"""Tiny models for tests, with weights that hide nothing: no bias is 0, no norm is 1."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mae.config.model import ModelConfig, PixelConfig
from mae.config.objective import ObjectiveConfig
from mae.model.autoencoder import MaskedAutoencoder

Module = TypeVar("Module", bound=nn.Module)

B, C, P_EDGE, GRID, D, E = 2, 3, 4, (3, 5), 24, 16  # distinct, so that no transpose goes unseen


def tiny_config(**fields: Any) -> ModelConfig:
    """3 x 5 patches of 4 x 4 x 3."""
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
        "pixels": PixelConfig(mean=(0.5,) * channels, std=(0.25,) * channels),
    }
    return ModelConfig(**(given | fields))


def tiny_objective(**fields: Any) -> ObjectiveConfig:
    """3 of 15 patches are kept."""
    return ObjectiveConfig(**({"mask_ratio": 0.8} | fields))


def tiny_model(generator: torch.Generator, **fields: Any) -> MaskedAutoencoder:
    """A model of `tiny_config`; fields of `ObjectiveConfig` are taken as well."""
    of_objective = {f.name for f in dataclasses.fields(ObjectiveConfig)} & fields.keys()
    objective = tiny_objective(**{name: fields.pop(name) for name in of_objective})
    return scrambled(MaskedAutoencoder(tiny_config(**fields), objective), generator)


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
