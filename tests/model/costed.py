"""Networks of many shapes, to hold what they are said to cost against what they do."""

from __future__ import annotations

import torch

from mae.config.model import ModelConfig
from mae.config.sizes import model_config
from mae.model.autoencoder import MaskedAutoencoder
from tests.model.tiny import tiny_config

SHAPES = {
    "vit-ti/4 at 28": model_config("vit-ti/4", image_size=28),
    "vit-ti/16 at 96": model_config("vit-ti/16", image_size=96),
    "vit-s/16 at 224": model_config("vit-s/16"),
    "3 x 5 patches": tiny_config(decoder_depth=3),
    "4 channels": model_config("vit-ti/16", image_size=(96, 160), channels=4, depth=3),
    "decoder of 1 block": model_config("vit-ti/8", image_size=96, depth=3, decoder_depth=1),
}
"""Few tokens, whose attention is written out on a CPU, and many; encoder and decoder of either."""


def checkpointed(model: MaskedAutoencoder, *, every: int | None) -> MaskedAutoencoder:
    model.encoder.blocks.checkpoint_every = model.decoder.blocks.checkpoint_every = every
    return model


def drawn(config: ModelConfig, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    size = (2, config.channels, *config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return images, torch.rand(2, config.num_patches, generator=generator)
