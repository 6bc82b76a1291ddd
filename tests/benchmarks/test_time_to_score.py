"""The textbook's encoder is read as what it is."""

from __future__ import annotations

import torch
from benchmarks.textbook import TextbookMAE
from benchmarks.time_to_score import _encoder_of

from tests.model.tiny import scrambled, tiny_config


def test_the_encoder_of_the_textbook_is_the_same_function(generator: torch.Generator) -> None:
    config = tiny_config(grid=(3, 3))
    model = scrambled(TextbookMAE(config), generator).eval()
    images = torch.randn(2, config.channels, *config.image_size, generator=generator)

    encoder = _encoder_of(model, config).eval()

    with torch.inference_mode():
        tokens = model.proj(images).flatten(2).transpose(1, 2) + model.pos[:, 1:]
        cls = (model.cls_token + model.pos[:, :1]).expand(2, -1, -1)
        tokens = torch.cat([cls, tokens], dim=1)
        for block in model.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(encoder(images), model.norm(tokens), rtol=1e-5, atol=1e-5)
