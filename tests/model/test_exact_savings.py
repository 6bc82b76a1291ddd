"""What is saved changes nothing: loss and gradients are those of the plain step, and it is saved.

Gathered before the projection; decoder tokens in shuffled order; the last decoder block, the head
and the targets on hidden patches alone; fused qkv and attention (issue 7, decisions 0002, 0008).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import model_config
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from tests.model.plain import plain_loss
from tests.model.tiny import batch, tiny_config, tiny_model, tiny_objective

Described = tuple[ModelConfig, ObjectiveConfig]
SIX_OF_TEN_HIDDEN = ObjectiveConfig(mask_ratio=0.6)
ODD = {
    "3 x 5 patches, 6 of 15 kept": (tiny_config(), SIX_OF_TEN_HIDDEN),
    "4 channels, a decoder of 3 blocks": (
        tiny_config(channels=4, decoder_depth=3),
        tiny_objective(),
    ),
    "patch 14, heads of 12": (
        tiny_config(patch_size=14, width=60, num_heads=5, decoder_width=36, decoder_heads=3),
        SIX_OF_TEN_HIDDEN,
    ),
    "pixels as they are": (
        tiny_config(decoder_depth=2),
        tiny_objective(normalize_target=False),
    ),
    # 1 + 39 tokens in the encoder and 1 + 99 in the decoder: attention written out, and fused.
    "9 x 11 patches": (tiny_config(grid=(9, 11), depth=3, decoder_depth=2), SIX_OF_TEN_HIDDEN),
}
SHALLOW = {
    "vit-b/16 of 2 blocks, decoder of 2": (
        model_config("vit-b/16", depth=2, decoder_depth=2),
        ObjectiveConfig(),
    ),
    "vit-l/16 of 2 blocks, decoder of 1": (
        model_config("vit-l/16", depth=2, decoder_depth=1),
        ObjectiveConfig(),
    ),
}
WHOLE = {
    "vit-b/16": (model_config("vit-b/16"), ObjectiveConfig()),
    "vit-b/16, decoder of 1 block": (model_config("vit-b/16", decoder_depth=1), ObjectiveConfig()),
    "vit-l/16": (model_config("vit-l/16"), ObjectiveConfig()),
}


def described(group: dict[str, Described], *marks: pytest.MarkDecorator) -> list[object]:
    return [pytest.param(network, id=name, marks=marks) for name, network in group.items()]


class Distances(dict[str, float]):
    """How far each gradient is from the plain one, of the plain one's norm; "loss" and "all"."""

    @property
    def worst(self) -> tuple[float, str]:
        return max((distance, name) for name, distance in self.items())


def distances(
    network: Described, generator: torch.Generator, *, images: int, dtype: torch.dtype
) -> Distances:
    config, objective = network
    model = create(config, objective=objective)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if parameter.ndim == 1:  # no bias is 0 and no norm 1, which would hide something
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model = model.to(dtype)
    inputs, noise = (part.to(dtype) for part in batch(generator, config, images=images))

    def loss_and_gradients(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, list(trained.values()))]

    ours = loss_and_gradients(model(inputs, noise=noise).loss)
    plain = loss_and_gradients(plain_loss(model, inputs, noise=noise))
    off = torch.stack([(a - b).norm() for a, b in zip(ours, plain, strict=True)])
    norms = torch.stack([b.norm() for b in plain])
    found = Distances(zip(["loss", *trained], (off / norms).tolist(), strict=True))
    found["all"] = (off[1:].norm() / norms[1:].norm()).item()
    return found


@pytest.mark.parametrize("network", described(ODD) + described(SHALLOW, pytest.mark.slow))
def test_loss_and_every_gradient_are_exactly_the_plain_ones(network, generator):
    found = distances(network, generator, images=2, dtype=torch.float64)

    assert found.worst[0] <= 1e-12, found.worst


# A gradient of a few dozen numbers has no many roundings to average: up to 1.5e-6 was seen, where
# the plain step is as far from its own in float64 as ours is. All gradients together are within.
@pytest.mark.parametrize("network", described(ODD))
def test_odd_sizes_differ_in_float32_by_rounding_alone(network, generator):
    found = distances(network, generator, images=2, dtype=torch.float32)

    assert found["loss"] <= 1e-6
    assert found["all"] <= 1e-6
    assert found.worst[0] <= 3e-6, found.worst


@pytest.mark.slow
@pytest.mark.parametrize("network", described(SHALLOW))
def test_published_widths_differ_in_float32_by_less_than_a_millionth(network, generator):
    found = distances(network, generator, images=2, dtype=torch.float32)

    assert found.worst[0] <= 1e-6, found.worst


@pytest.mark.slow
@pytest.mark.parametrize("network", described(WHOLE))
def test_published_sizes_differ_in_float32_by_less_than_a_millionth(network, generator):
    found = distances(network, generator, images=1, dtype=torch.float32)

    assert found.worst[0] <= 1e-6, found.worst


VIT_B, _ = WHOLE["vit-b/16"]
D, E, P, L, K = VIT_B.width, VIT_B.decoder_width, VIT_B.patch_values, 196, 49
T = 1 + L


def forward_flops(forward: Callable[[MaskedAutoencoder, Tensor, Tensor], Tensor]) -> dict[str, int]:
    """Count the operations of a forward of one image, by module; no number is computed."""
    with torch.device("meta"):
        model = MaskedAutoencoder(VIT_B)
        images, noise = torch.empty(1, 3, 224, 224), torch.empty(1, L)
    with FlopCounterMode(display=False) as counter:
        forward(model, images, noise)
    return {
        name.removeprefix("MaskedAutoencoder."): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
    }


@pytest.fixture(scope="module")
def flops() -> dict[str, int]:
    return forward_flops(lambda model, images, noise: model(images, noise=noise).loss)


def test_only_visible_patches_are_projected(flops):
    assert flops["encoder.patch_embed"] == 2 * K * P * D


def test_only_hidden_tokens_ask_in_the_last_decoder_block_and_go_through_it(flops):
    products = {f"decoder.blocks.{i}": 2 * (2 * T * T * E) for i in range(7)}
    products["decoder.blocks.7"] = 2 * (2 * (L - K) * T * E)

    for name, expected in products.items():
        asking = L - K if name == "decoder.blocks.7" else T
        parts = {part: flops[f"{name}.{part}"] for part in ("attn.qkv", "attn.proj", "mlp")}
        assert flops[f"{name}.attn"] - parts["attn.qkv"] - parts["attn.proj"] == expected
        assert parts["attn.proj"] == 2 * asking * E**2
        assert parts["mlp"] == 2 * asking * 8 * E**2


def test_only_hidden_patches_are_predicted(flops):
    assert flops["decoder.pred"] == 2 * (L - K) * E * P


def test_only_hidden_patches_get_a_target(generator, monkeypatch):
    model = tiny_model(generator, mask_ratio=0.6)
    images, noise = batch(generator, model.config)
    given, target = [], MaskedAutoencoder.target

    def watched(self: MaskedAutoencoder, patches: Tensor) -> Tensor:
        given.append(tuple(patches.shape))
        return target(self, patches)

    monkeypatch.setattr(MaskedAutoencoder, "target", watched)

    model(images, noise=noise)

    assert given == [(2, 15 - 6, 48)]


def test_nothing_else_of_the_plain_arithmetic_is_left_out(flops):
    plain = forward_flops(lambda model, images, noise: plain_loss(model, images, noise=noise))

    projected = (L - K) * P * D
    predicted = (1 + K) * E * P
    last_block = (1 + K) * (E**2 + 8 * E**2 + 2 * T * E)
    assert plain["Global"] - flops["Global"] == 2 * (projected + predicted + last_block)


def nodes(loss: Tensor) -> Iterator[str]:
    """Name what the backward pass will do."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node.name()
            waiting += [following for following, _ in node.next_functions]


def test_tokens_are_neither_gathered_nor_put_back(generator):
    model = tiny_model(generator, mask_ratio=0.6)
    images, noise = batch(generator, model.config)

    ours, plain = (
        {*nodes(loss)}
        for loss in (model(images, noise=noise).loss, plain_loss(model, images, noise=noise))
    )

    # Pixels and positions are gathered, which need no gradient.
    assert not {name for name in ours if "Gather" in name or "Index" in name}
    assert "IndexBackward0" in plain


def test_each_block_has_one_product_for_queries_keys_and_values_and_one_for_attention(generator):
    config = ODD["9 x 11 patches"][0]
    # More than 64 tokens everywhere.
    model = create(config, objective=ObjectiveConfig(mask_ratio=0.3))
    images, noise = batch(generator, config)

    done = [*nodes(model(images, noise=noise).loss)]

    blocks = config.depth + config.decoder_depth
    assert sum(name.startswith("ScaledDotProduct") for name in done) == blocks
    # qkv, proj, fc1 and fc2 of each block; projection, embedding and head.
    products = ("AddmmBackward0", "_OneDnnLinearBackward")
    assert sum(name in products for name in done) == 4 * blocks + 3
