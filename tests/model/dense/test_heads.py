"""Pyramids and heads: sizes, and equality with transformers."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from mae.model.dense.heads import DroppedClassifier, FcnHead, LinearHead, UPerHead
from mae.model.dense.pyramid import Feature2Pyramid, MapNorm, SimplePyramid
from tests.model.tiny import scrambled

WIDTH, CHANNELS, CLASSES = 12, 8, 5
BATCH = nn.BatchNorm2d

# theirs: ours
UPERNET = {
    r"^psp_modules\.(\d)\.1\.": r"pooled.\1.",
    r"^lateral_convs": "lateral",
    r"^fpn_convs": "fpn",
    r"^fpn_bottleneck": "fusion",
    r"^convs\.0": "conv",
    r"^classifier": "classify.conv",
    r"batch_norm": "norm",
}


def upernet_config() -> UperNetConfig:
    return UperNetConfig(
        hidden_size=CHANNELS, num_labels=CLASSES, auxiliary_channels=CHANNELS,
        auxiliary_num_convs=1, auxiliary_concat_input=False, auxiliary_in_channels=WIDTH,
    )  # fmt: skip


def with_our_weights(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Return their module in training mode with our weights, every one of them."""
    own = ours.state_dict()
    names = {name: name for name in theirs.state_dict()}
    for name in names:
        for pattern, ours_ in UPERNET.items():
            names[name] = re.sub(pattern, ours_, names[name])
    assert sorted(names.values()) == sorted(own)
    theirs.load_state_dict({name: own[our].clone() for name, our in names.items()})
    return theirs.train()


def pyramid(generator: torch.Generator) -> list[Tensor]:
    """Four maps, the finest first, of a grid that is not square and does not halve evenly."""
    sizes = ((12, 20), (6, 10), (3, 5), (2, 3))
    return [torch.randn(2, WIDTH, *size, generator=generator) for size in sizes]


def test_the_head_of_upernet_equals_transformers(generator: torch.Generator) -> None:
    how = {"channels": CHANNELS, "num_classes": CLASSES, "norm": BATCH, "dropout": 0.1}
    ours = scrambled(UPerHead(WIDTH, **how), generator).train()
    theirs = with_our_weights(UperNetHead(upernet_config(), [WIDTH] * 4), ours)
    maps = pyramid(generator)

    found = ours(maps)

    assert found.shape == (2, CLASSES, 12, 20)
    torch.testing.assert_close(found, theirs(maps), atol=1e-5, rtol=1e-5)


def test_the_auxiliary_head_equals_transformers(generator: torch.Generator) -> None:
    how = {"channels": CHANNELS, "num_classes": CLASSES, "norm": BATCH, "dropout": 0.1}
    ours = scrambled(FcnHead(WIDTH, **how), generator).train()
    theirs = with_our_weights(UperNetFCNHead(upernet_config(), [WIDTH] * 4, in_index=2), ours)
    maps = pyramid(generator)

    torch.testing.assert_close(ours(maps[2]), theirs(maps), atol=1e-5, rtol=1e-5)


def test_the_linear_head_is_a_norm_and_a_product_at_each_place(
    generator: torch.Generator,
) -> None:
    head = LinearHead(2 * WIDTH, num_classes=CLASSES, norm=BATCH, dropout=0.0)
    maps = [torch.randn(2, WIDTH, 3, 5, generator=generator) for _ in range(2)]

    found = head(maps)

    places = torch.cat(maps, dim=1).permute(0, 2, 3, 1).reshape(-1, 2 * WIDTH)
    normed = F.batch_norm(places, None, None, training=True)
    weight, bias = head.classify.conv.weight[:, :, 0, 0], head.classify.conv.bias
    expected = (normed @ weight.t() + bias).reshape(2, 3, 5, CLASSES).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_channels_are_dropped_by_their_draws_alone(generator: torch.Generator) -> None:
    head = DroppedClassifier(3, num_classes=2, dropout=0.25)
    maps = torch.randn(2, 3, 1, 4, generator=generator)
    draws = torch.tensor([[0.1, 0.25, 0.9], [0.3, 0.2, 0.24]])

    found = head(maps, draws=draws)

    factors = torch.tensor([[0, 4 / 3, 4 / 3], [4 / 3, 0, 0]])
    torch.testing.assert_close(found, head.conv(maps * factors[:, :, None, None]))
    assert torch.equal(head(maps, draws=None), head.conv(maps))


def test_feature_2_pyramid_resizes_by_4_2_1_and_a_half(generator: torch.Generator) -> None:
    maker = scrambled(Feature2Pyramid(WIDTH, norm=BATCH), generator)
    maps = [torch.randn(2, WIDTH, 4, 6, generator=generator) for _ in range(4)]

    found = maker(maps)

    four, two = maker.levels[0], maker.levels[1]
    once = F.conv_transpose2d(maps[0], four[0].weight, four[0].bias, stride=2)
    normed = F.batch_norm(once, None, None, four[1].weight, four[1].bias, training=True)
    expected = F.conv_transpose2d(F.gelu(normed), four[3].weight, four[3].bias, stride=2)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    expected = F.conv_transpose2d(maps[1], two.weight, two.bias, stride=2)
    torch.testing.assert_close(found[1], expected)
    assert found[2] is maps[2]
    assert torch.equal(found[3], F.max_pool2d(maps[3], 2))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 7)])
def test_feature_2_pyramid_takes_a_grid_of_any_size(size: tuple[int, int]) -> None:
    h, w = size
    maps = [torch.ones(2, WIDTH, h, w)] * 4

    found = Feature2Pyramid(WIDTH, norm=BATCH)(maps)

    sizes = [tuple(m.shape[-2:]) for m in found]
    assert sizes == [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), (-(-h // 2), -(-w // 2))]


def test_the_simple_pyramid_has_strides_4_to_32_and_published_layers(
    generator: torch.Generator,
) -> None:
    maker = scrambled(SimplePyramid(WIDTH, channels=CHANNELS), generator)
    last = torch.randn(2, WIDTH, 4, 6, generator=generator)

    found = maker(last)

    sizes = [tuple(m.shape[1:]) for m in found]
    assert sizes == [(CHANNELS, 16, 24), (CHANNELS, 8, 12), (CHANNELS, 4, 6), (CHANNELS, 2, 3)]

    def refined(maps: Tensor, level: int) -> Tensor:
        for part in list(maker.levels[level])[1:]:
            padding = part.conv.weight.shape[-1] // 2
            maps = part.norm(F.conv2d(maps, part.conv.weight, padding=padding))
        return maps

    up = maker.levels[0][0]
    maps = F.conv_transpose2d(last, up[0].weight, up[0].bias, stride=2)
    assert maps.shape[1] == WIDTH // 2
    maps = F.conv_transpose2d(F.gelu(up[1](maps)), up[3].weight, up[3].bias, stride=2)
    assert maps.shape[1] == WIDTH // 4
    torch.testing.assert_close(found[0], refined(maps, 0), atol=1e-5, rtol=1e-5)
    up = maker.levels[1][0]
    maps = F.conv_transpose2d(last, up.weight, up.bias, stride=2)
    torch.testing.assert_close(found[1], refined(maps, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], refined(last, 2), atol=1e-5, rtol=1e-5)
    expected = refined(F.max_pool2d(last, 2), 3)
    torch.testing.assert_close(found[3], expected, atol=1e-5, rtol=1e-5)


def test_the_norm_of_maps_equals_transformers(generator: torch.Generator) -> None:
    ours, theirs = scrambled(MapNorm(WIDTH), generator), VitDetLayerNorm(WIDTH)
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(2, WIDTH, 3, 5, generator=generator)

    torch.testing.assert_close(ours(maps), theirs(maps), atol=1e-5, rtol=1e-5)
