"""What a step is said to cost is what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae.jobs.outlook import saved_bytes
from mae.model.costs import HALF, count_parameters, kept_bytes, step_flops
from mae.model.create import create
from mae.network import ModelConfig
from mae.sizes import model_config
from tests.model.costed import SHAPES, drawn


@pytest.mark.parametrize(
    ("name", "trained", "frozen"),
    [
        ("vit-b/16", 111_655_680, 252_160),
        ("vit-l/16", 329_239_296, 302_592),
        ("vit-h/14", 656_613_964, 460_544),
    ],
)
def test_parameters_are_as_many_as_published(name: str, trained: int, frozen: int) -> None:
    # Source: OpenMMLab's metafiles, whose totals count the frozen tables.
    assert count_parameters(model_config(name)) == (trained, frozen)


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
    copies = two - 2 * kept

    assert kept_bytes(config, half=True, on_cpu=True) == pytest.approx(kept, rel=0.1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert copies == pytest.approx(HALF * trained, rel=0.1)


def test_attention_kept_off_the_cpu_has_no_table_of_token_pairs() -> None:
    config = SHAPES["vit-ti/4 at 28"]

    less = kept_bytes(config, half=False, on_cpu=True) - kept_bytes(
        config, half=False, on_cpu=False
    )

    assert less > 0


def test_flops_are_what_torch_counts(generator: torch.Generator) -> None:
    config = SHAPES["3 x 5 patches"]  # few tokens: every product is a plain one
    images, noise = drawn(config, generator)
    model = create(config).double()  # torch counts its own linear layers, not oneDNN's

    with FlopCounterMode(display=False) as counter:
        model(model.normalize(images).double(), noise=noise).loss.backward()

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
