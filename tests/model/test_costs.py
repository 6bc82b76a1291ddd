"""What a step is said to cost is what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae.jobs.outlook import saved_bytes
from mae.model.create import create
from mae.model.costs import kept_bytes, step_flops
from mae.network import ModelConfig
from mae.sizes import model_config
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


def drawn(config: ModelConfig, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    size = (2, config.channels, *config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return images, torch.rand(2, config.num_patches, generator=generator)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kept_bytes_are_what_autograd_keeps(
    config: ModelConfig, generator: torch.Generator
) -> None:
    images, noise = drawn(config, generator)

    kept = saved_bytes(create(config), images, noise)

    # No tensor of the size of a token sequence is missed or counted twice.
    assert kept_bytes(config, half=False, on_cpu=True) == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kept_bytes_of_half_precision_are_what_autograd_keeps(
    config: ModelConfig, generator: torch.Generator
) -> None:
    images, noise = drawn(config, generator)
    model = create(config)
    # A copy of each weight is kept once, however many the images are.
    two, four = (
        n * saved_bytes(model, images.repeat(n // 2, 1, 1, 1), noise.repeat(n // 2, 1), half=True)
        for n in (2, 4)
    )

    kept = (four - two) / 2

    assert kept_bytes(config, half=True, on_cpu=True) == pytest.approx(kept, rel=0.1)


def test_attention_kept_off_the_cpu_has_no_table_of_token_pairs() -> None:
    config = SHAPES["vit-ti/4 at 28"]

    less = kept_bytes(config, half=False, on_cpu=True) - kept_bytes(config, half=False, on_cpu=False)

    assert less > 0


def test_flops_are_what_torch_counts(generator: torch.Generator) -> None:
    config = SHAPES["3 x 5 patches"]  # few tokens: every product is a plain one
    images, noise = drawn(config, generator)
    model = create(config)

    with FlopCounterMode(display=False) as counter:
        model(model.normalize(images), noise=noise).loss.backward()

    assert 2 * step_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "page"), [("vit-b/16", 58.5), ("vit-l/16", 124.2), ("vit-h/14", 291.0)]
)
def test_flops_are_the_published_ones_less_what_is_saved_exactly(name: str, page: float) -> None:
    config = model_config(name)
    D, E, P, L, K = config.width, 512, config.patch_values, config.num_patches, config.num_keep
    # The published step projects hidden patches, predicts visible ones, and takes every token
    # through the last decoder block.
    projected = 2 * (L - K) * P * D
    predicted = 3 * (1 + K) * E * P
    decoded = 3 * (1 + K) * (E**2 + 8 * E**2 + 2 * (1 + L) * E)

    published = step_flops(config) + 2 * (projected + predicted + decoded)

    assert published / 1e9 == pytest.approx(page, rel=2e-3)
