"""The segmenter: sizes, draws, gradients and loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mae.config.dense import DenseConfig, HeadConfig
from mae.errors import ConfigError
from mae.model.dense.segmenter import Segmenter, SegmentOutput, segmentation_loss
from mae.model.encoder import Encoder
from tests.model.tiny import scrambled, tiny_config

CLASSES = 5


def segmenter(generator: torch.Generator, *, dense: DenseConfig, **head: Any) -> Segmenter:
    """Of four blocks, and 3 x 5 patches of 4 pixels in training."""
    encoder = Encoder(tiny_config(depth=4))
    given = {"channels": 6, "auxiliary_channels": 4} | head
    model = Segmenter(encoder, num_classes=CLASSES, dense=dense, head=HeadConfig(**given))
    return scrambled(model, generator)


UPERNET = DenseConfig(relative_positions="table", layer_scale=1.0)
WINDOWED = DenseConfig(window=2, global_blocks=(1, 3), relative_positions="decomposed")


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("kind", ["linear", "upernet"])
@pytest.mark.parametrize("size", [(12, 20), (9, 30), (3, 2)])
def test_logits_have_the_size_of_the_images(
    kind: str, norm: str, size: tuple[int, int], generator: torch.Generator
) -> None:
    model = segmenter(generator, dense=UPERNET, kind=kind, norm=norm)
    images = torch.randn(2, 3, *size, generator=generator)

    found = model(images)

    assert found.logits.shape == (2, CLASSES, *size)
    if kind == "upernet":
        assert found.auxiliary.shape == found.logits.shape
    assert model.eval()(images).auxiliary is None


def test_logits_of_a_padded_image_lie_where_those_of_the_whole_one_do(
    generator: torch.Generator,
) -> None:
    model = segmenter(generator, dense=DenseConfig(), norm="group").eval()
    images = torch.zeros(1, 3, 12, 20)
    images[..., :10, :17] = torch.randn(3, 10, 17, generator=generator)

    found = model(images[..., :10, :17]).logits

    torch.testing.assert_close(found, model(images).logits[..., :10, :17])


@pytest.mark.parametrize("dense", [DenseConfig(), UPERNET, WINDOWED], ids=["plain", "beit", "win"])
@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_gradients_reach_everything_that_is_trained(
    kind: str, dense: DenseConfig, generator: torch.Generator
) -> None:
    model = segmenter(generator, dense=dense, kind=kind).requires_grad_(requires_grad=True)
    images = torch.randn(2, 3, 24, 40, generator=generator)
    targets = torch.randint(0, CLASSES, (2, 24, 40), generator=generator)

    segmentation_loss(model(images), targets, ignore_index=255).backward()

    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


def test_draws_drop_branches_then_the_channels_of_both_heads(generator: torch.Generator) -> None:
    model = segmenter(generator, dense=DenseConfig(), norm="group", dropout=0.5)
    model.encoder.drop_path = 0.5
    images = torch.randn(2, 3, 12, 20, generator=generator)
    draws = torch.full((2, model.num_draws), 0.9)
    assert model.num_draws == 2 * 4 + 6 + 4
    draws[:, :8] = 0.0  # nothing is dropped in the blocks, their branches are scaled up

    plain, kept = model(images), model(images, drops=draws)
    draws[1, 8:14] = 0.1  # all channels of the head, of the second image
    without = model(images, drops=draws)

    assert not torch.allclose(kept.logits, plain.logits)
    assert torch.equal(without.logits[0], kept.logits[0])
    bias = model.head.classify.conv.bias[:, None, None]
    torch.testing.assert_close(without.logits[1], bias.expand(CLASSES, 12, 20))
    assert torch.equal(without.auxiliary, kept.auxiliary)
    draws[0, 14:] = 0.1
    bias = model.auxiliary.classify.conv.bias[:, None, None]
    found = model(images, drops=draws).auxiliary[0]
    torch.testing.assert_close(found, bias.expand(CLASSES, 12, 20))


def test_the_loss_is_the_mean_over_all_pixels_ignored_ones_counted_as_zero(
    generator: torch.Generator,
) -> None:
    logits, auxiliary = torch.randn(2, 2, CLASSES, 3, 4, generator=generator)
    targets = torch.randint(0, CLASSES, (2, 3, 4), generator=generator)
    targets[0, :, :2] = 255

    found = segmentation_loss(
        SegmentOutput(logits, auxiliary), targets, ignore_index=255, auxiliary_weight=0.4
    )

    counted = targets != 255
    share = counted.double().mean()
    parts = [
        F.cross_entropy(each.permute(0, 2, 3, 1)[counted], targets[counted]) * share
        for each in (logits, auxiliary)
    ]
    assert found.item() == pytest.approx((parts[0] + 0.4 * parts[1]).item(), rel=1e-5)
    halves = [
        segmentation_loss(SegmentOutput(logits[i : i + 1]), targets[i : i + 1], ignore_index=255)
        for i in range(2)
    ]
    whole = segmentation_loss(SegmentOutput(logits), targets, ignore_index=255)
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_all_pixels_ignored_give_a_loss_of_zero() -> None:
    logits = torch.ones(1, CLASSES, 2, 2, requires_grad=True)

    loss = segmentation_loss(SegmentOutput(logits), torch.full((1, 2, 2), 255), ignore_index=255)
    loss.backward()

    assert loss.item() == 0
    assert not logits.grad.any()


def test_default_blocks_are_the_published_ones() -> None:
    assert HeadConfig().blocks_of(12) == (3, 5, 7, 11)
    assert HeadConfig().blocks_of(24) == (7, 11, 15, 23)
    assert HeadConfig(kind="linear").blocks_of(12) == (11,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": (3, 11)}, "four, in ascending order"),
        ({"blocks": (5, 3, 7, 11)}, "ascending"),
        ({"kind": "linear", "blocks": ()}, "ascending"),
        ({"blocks": (3, 5, 7, 10)}, "the last block, 11"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_wrong_settings_of_a_head_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HeadConfig(**fields).blocks_of(12)


@pytest.mark.parametrize("dense", [UPERNET, WINDOWED], ids=["beit", "windows"])
def test_logits_in_bf16_are_near_those_in_float32(
    dense: DenseConfig, generator: torch.Generator
) -> None:
    model = segmenter(generator, dense=dense, norm="group").eval()
    images = torch.randn(2, 3, 24, 40, generator=generator)

    with torch.autocast("cpu", torch.bfloat16):
        found = model(images).logits

    expected = model(images).logits
    difference = (found.float() - expected).norm() / expected.norm()
    assert 0 < difference < 0.03
