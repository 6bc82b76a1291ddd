"""Mean, spread and range of every initial value, as published."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from tests.model.tiny import tiny_config


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    """Wide enough for statistics: 4,096 values in the smallest matrix."""
    return create(tiny_config(width=96, num_heads=3, decoder_width=64, decoder_heads=4))


def assert_uniform(values: Tensor, bound: float, name: str) -> None:
    """Mean and spread within five standard errors; the range reached, never left."""
    n, spread = values.numel(), bound / math.sqrt(3)
    assert values.abs().max() <= bound, name
    assert values.max() > bound * (1 - 20 / n), name  # missed once in e^10
    assert values.min() < -bound * (1 - 20 / n), name
    assert abs(values.mean()) < 5 * spread / math.sqrt(n), name
    assert abs(values.std() / spread - 1) < 5 * math.sqrt(0.2 / n), name  # kurtosis 1.8


def xavier_bound(weight: Tensor) -> float:
    return math.sqrt(6 / sum(weight.shape))


def test_every_linear_weight_is_xavier_uniform_over_its_whole_matrix_and_every_bias_zero(model):
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}

    assert len(linear) == 4 * 3 + 2  # in three blocks; decoder.embed, decoder.pred
    for name, layer in linear.items():
        assert_uniform(layer.weight, xavier_bound(layer.weight), name)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias)), name


def test_queries_keys_and_values_share_one_xavier_matrix(model):
    weight = model.encoder.blocks[0].attn.qkv.weight

    assert weight.shape == (288, 96)
    for part in weight.chunk(3):
        assert_uniform(part, math.sqrt(6 / (288 + 96)), "qkv")


def test_every_norm_is_one_and_zero(model):
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]

    assert len(norms) == 2 * 3 + 2
    for norm in norms:
        assert norm.eps == 1e-6
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_the_patch_projection_is_xavier_uniform_over_flattened_patches(model):
    weight = model.encoder.patch_embed.proj.weight

    assert weight.shape == (96, 3, 4, 4)
    assert_uniform(weight, math.sqrt(6 / (96 + 3 * 4 * 4)), "patch_embed.proj")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bias_of_the_patch_projection_keeps_the_default_of_a_convolution(channels):
    config = tiny_config(channels=channels, width=1024, num_heads=1, depth=1)

    bias = create(config).encoder.patch_embed.proj.bias

    assert_uniform(bias, 1 / math.sqrt(channels * 4 * 4), "patch_embed.proj.bias")


@pytest.mark.slow
@pytest.mark.parametrize(("part", "token"), [("encoder", "cls_token"), ("decoder", "mask_token")])
def test_tokens_are_normal_with_deviation_one_fiftieth_and_not_truncated(part, token):
    config = tiny_config(width=4096, depth=1, num_heads=1, mlp_ratio=0.01, decoder_width=4096)

    values = getattr(getattr(create(config), part), token)

    assert values.shape == (1, 1, 4096)
    assert abs(values.mean()) < 5 * 0.02 / math.sqrt(4096)
    assert abs(values.std() / 0.02 - 1) < 5 / math.sqrt(2 * 4096)
    outside = (values.abs() > 0.04).float().mean()
    assert abs(outside - 0.0455) < 5 * math.sqrt(0.0455 / 4096)
    assert values.abs().max() > 0.06


def test_position_tables_are_frozen_but_stored(model):
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]

    assert frozen == ["encoder.pos_embed", "decoder.pos_embed"]
    assert set(frozen) <= set(model.state_dict())


def test_initial_values_follow_from_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = create(tiny_config(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)

    again, other = create(tiny_config(), seed=5), create(tiny_config(), seed=6)

    weights = [m.encoder.blocks[0].attn.qkv.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
