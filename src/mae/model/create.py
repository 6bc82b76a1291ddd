"""Create new masked autoencoders with the published initialization."""

from __future__ import annotations

import torch

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import model_config
from mae.model.autoencoder import MaskedAutoencoder


def create(
    model: str | ModelConfig,
    *,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    objective: ObjectiveConfig | None = None,
    seed: int = 0,
) -> MaskedAutoencoder:
    """Create a new masked autoencoder with the published initialisation.

    Args:
        model: "vit-{ti,s,b,l,h}/PATCH", or a `ModelConfig`, which overrides the other sizes.
        image_size: edge, or height and width, in pixels.
        channels: channels of an image.
        objective: mask and target; none: the published ones.
        seed: seed of the initial weights; the global generator is not changed.

    Raises:
        ConfigError: for an unknown name.
        ShapeError: for a size not divisible by the patch size.
    """
    config = (
        model
        if isinstance(model, ModelConfig)
        else model_config(model, image_size=image_size, channels=channels)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MaskedAutoencoder(config, objective)
