from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from mae.config.model import PixelConfig
from mae.errors import ConfigError, DataError, ShapeError
from mae.model.encoder import Encoder, pool_tokens
from mae.model.masking import gather, random_masking
from mae.model.patches import patchify
from mae.model.positions import resize_positions
from tests.model.tiny import batch, scrambled, tiny_config


def tiny_encoder(generator: torch.Generator, **fields: object) -> Encoder:
    return scrambled(Encoder(tiny_config(**fields)), generator)


def test_hidden_pixels_never_reach_the_latent(generator):
    encoder = tiny_encoder(generator)
    images, noise = batch(generator, encoder.config)
    images.requires_grad_()
    masking = random_masking(noise, num_keep=3)

    latent = encoder(images, masking.ids_keep)
    latent.square().sum().backward()

    gradient = patchify(images.grad, patch_size=4)
    assert latent.shape == (2, 1 + 3, 24)
    assert torch.equal(gradient[masking.mask], torch.zeros(2 * 12, 48))
    assert gradient[~masking.mask].abs().min() > 0


def test_not_even_nan_in_hidden_pixels_reaches_the_latent(generator):
    encoder = tiny_encoder(generator)
    images, noise = batch(generator, encoder.config)
    masking = random_masking(noise, num_keep=3)
    hidden = masking.mask.view(2, 1, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)

    spoiled = images.masked_fill(hidden, torch.nan)

    assert torch.equal(encoder(spoiled, masking.ids_keep), encoder(images, masking.ids_keep))


def test_keeping_every_patch_is_the_plain_encoder(generator):
    encoder = tiny_encoder(generator).double()
    images = batch(generator, encoder.config)[0].double()
    order = torch.stack([torch.randperm(15, generator=generator) for _ in range(2)])

    shuffled = encoder(images, order)
    plain = encoder(images)

    assert plain.shape == (2, 1 + 15, 24)
    torch.testing.assert_close(shuffled[:, 0], plain[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(shuffled[:, 1:], gather(plain[:, 1:], order), rtol=0, atol=1e-12)


def test_the_projection_is_the_stored_convolution(generator):
    encoder = tiny_encoder(generator)
    images, _ = batch(generator, encoder.config)

    projected = encoder.patch_embed(patchify(images, patch_size=4))

    expected = encoder.patch_embed.proj(images).flatten(2).mT  # B L D
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


def test_an_image_is_encoded_alike_in_any_batch(generator):
    encoder = tiny_encoder(generator).double()
    images = batch(generator, encoder.config)[0].double()

    alone = torch.cat([encoder(image[None]) for image in images])

    torch.testing.assert_close(encoder(images), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_channel_count_are_encoded(generator, channels):
    encoder = tiny_encoder(generator, channels=channels)
    images, _ = batch(generator, encoder.config)

    assert encoder(images).shape == (2, 1 + 15, 24)


def test_another_size_resizes_the_trained_table(generator):
    encoder = tiny_encoder(generator)
    encoder.pos_embed.data = torch.randn(1, 16, 24, generator=generator)  # trained, not computed
    images = torch.randn(2, 3, 16, 28, generator=generator)

    tokens = encoder(images)

    other = Encoder(tiny_config(grid=(4, 7)))
    table = resize_positions(encoder.pos_embed, grid_from=(3, 5), grid_to=(4, 7))
    other.load_state_dict(encoder.state_dict() | {"pos_embed": table})
    assert tokens.shape == (2, 1 + 28, 24)
    assert torch.equal(tokens, other(images))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [("mean", (2, 24)), ("cls", (2, 24)), ("grid", (2, 9 * 24)), ("tokens", (2, 15, 24))],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_features_have_the_documented_shape_whatever_is_stored(generator, pool, shape, dtype):
    name = str(dtype).removeprefix("torch.")
    pixels = PixelConfig(dtype=name, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    encoder = tiny_encoder(generator, pixels=pixels)
    stored = torch.randint(0, 256, (2, 3, 12, 20), generator=generator).to(dtype)

    features = encoder.encode(stored, pool=pool)

    assert features.shape == shape
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_pools_are_means_of_the_tokens_after_the_last_norm(generator):
    encoder = tiny_encoder(generator, grid=(3, 6))
    images, _ = batch(generator, encoder.config)

    tokens = encoder(images).detach()
    by_pool = {p: encoder.encode(images, pool=p) for p in ("mean", "cls", "grid", "tokens")}

    assert torch.equal(by_pool["cls"], tokens[:, 0])
    assert torch.equal(by_pool["tokens"], tokens[:, 1:])
    torch.testing.assert_close(by_pool["mean"], tokens[:, 1:].sum(dim=1) / 18)
    plane = tokens[:, 1:].view(2, 3, 6, 24)  # cells of one row and two columns
    cell = plane[:, 1, 4:6].mean(dim=1)
    torch.testing.assert_close(by_pool["grid"].view(2, 3, 3, 24)[:, 1, 2], cell)


def test_stored_pixels_and_their_normalised_floats_give_the_same_features(generator):
    encoder = tiny_encoder(generator)
    stored = torch.randint(0, 256, (2, 3, 12, 20), generator=generator, dtype=torch.uint8)

    by_hand = (stored.float() / 255 - 0.5) / 0.25

    torch.testing.assert_close(encoder.encode(stored), encoder.encode(by_hand))


def test_features_of_double_images_are_those_of_float_ones(generator):
    encoder = tiny_encoder(generator)
    images, _ = batch(generator, encoder.config)

    assert torch.equal(encoder.encode(images.double()), encoder.encode(images))


def test_features_use_every_patch_and_nothing_drawn_at_random(generator):
    encoder = tiny_encoder(generator)
    images, _ = batch(generator, encoder.config, images=1)

    features = encoder.encode(images)

    assert torch.equal(encoder.encode(images), features)
    for patch in range(15):
        row, column = 4 * (patch // 5), 4 * (patch % 5)
        changed = images.clone()
        changed[..., row : row + 4, column : column + 4] += 1
        assert not torch.equal(encoder.encode(changed), features), patch


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_pixels_that_are_no_numbers_are_refused(generator, bad):
    encoder = tiny_encoder(generator)
    images, _ = batch(generator, encoder.config)
    images[1, 2, 3, 4] = bad

    with pytest.raises(DataError, match="got NaN or infinite pixels, expected finite; clean"):
        encoder.encode(images)


def test_a_wrong_channel_count_is_refused(generator):
    encoder = tiny_encoder(generator)

    with pytest.raises(ShapeError, match="channels: got 1, expected 3 .*convert the images"):
        encoder.encode(torch.zeros(2, 1, 12, 20))
    with pytest.raises(ShapeError, match="got 1 channels of uint8, expected 3 .*convert"):
        encoder.encode(torch.zeros(2, 1, 12, 20, dtype=torch.uint8))


def test_pixels_stored_in_another_type_than_trained_are_refused(generator):
    encoder = tiny_encoder(generator)

    with pytest.raises(ShapeError, match="got 3 channels of uint16, expected 3 of uint8 .*convert"):
        encoder.encode(torch.zeros(2, 3, 12, 20, dtype=torch.uint16))


def test_a_size_the_patch_does_not_divide_is_refused(generator):
    encoder = tiny_encoder(generator)

    with pytest.raises(ShapeError, match="got 13 x 20, expected multiples of the patch size 4"):
        encoder.encode(torch.zeros(2, 3, 13, 20))


def test_images_without_a_batch_axis_are_refused(generator):
    encoder = tiny_encoder(generator)

    with pytest.raises(ShapeError, match="expected B C H W"):
        encoder.encode(torch.zeros(3, 12, 20))


def test_an_unknown_pool_is_refused():
    with pytest.raises(ConfigError, match="pool: got 'max', expected mean, cls, grid or tokens"):
        pool_tokens(torch.zeros(2, 16, 24), pool="max", grid=(3, 5))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 12, 20, 3), r"axis 3 looks like the channels: give images\.permute\(0, 3, 1, 2\)"),
        ((12, 20, 3), r"axis 2 .* of one image: give images\.permute\(2, 0, 1\)\[None\]"),
        ((3, 12, 20), r"axis 0 .* of one image: give images\[None\]"),
    ],
)
def test_the_axis_that_looks_like_the_channels_is_named(generator, shape, words):
    encoder = tiny_encoder(generator)

    for give in (encoder.encode, encoder.attention, encoder.intermediates):
        with pytest.raises(ShapeError, match=words):
            give(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"got ndarray, expected a tensor B C H W"):
        encoder.encode(np.zeros(shape, dtype=np.uint8))


def test_attention_is_the_softmax_of_the_blocks_own_queries_and_keys(generator):
    encoder = tiny_encoder(generator, depth=3)
    images, _ = batch(generator, encoder.config)
    block = encoder.blocks[1]
    with torch.no_grad():
        tokens = block.norm1(encoder.blocks[0](encoder.embed(images)))
        q, k, _ = (tokens @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
    heads = [
        (q[..., i : i + 8] @ k[..., i : i + 8].mT / 8**0.5).softmax(dim=-1) for i in (0, 8, 16)
    ]

    found = encoder.attention(images, block=1)

    assert found.shape == (2, 3, 16, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(heads, dim=1), rtol=0, atol=1e-6)
    assert torch.equal(found, encoder.attention(images, block=-2))
    assert not torch.equal(found, encoder.attention(images))
    assert not found.requires_grad


def test_maps_and_attention_of_blocks_are_timms(generator):
    encoder = tiny_encoder(generator, depth=4).eval()
    other = timm.models.VisionTransformer(
        img_size=(12, 20), patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=0
    ).eval()
    other.load_state_dict(encoder.state_dict())
    attention = []
    other.blocks[-1].attn.fused_attn = False
    other.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, __, out: attention.append(out))
    images, _ = batch(generator, encoder.config)
    expected = other.forward_intermediates(images, indices=[1, 3], intermediates_only=True)

    found = encoder.intermediates(images, blocks=(-1, 1))

    assert [each.shape for each in found] == [(2, 24, 3, 5)] * 2
    torch.testing.assert_close(found[0], expected[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.attention(images), attention[0], rtol=0, atol=1e-6)


def test_maps_are_of_stored_pixels_too_and_can_be_trained_on(generator):
    encoder = tiny_encoder(generator)
    stored = torch.randint(0, 256, (2, 3, 24, 20), generator=generator, dtype=torch.uint8)

    (found,) = encoder.intermediates(stored)
    found.sum().backward()

    assert found.shape == (2, 24, 6, 5)
    normed = encoder.norm(found.flatten(2).mT)
    torch.testing.assert_close(normed, encoder.encode(stored, pool="tokens"), rtol=0, atol=1e-5)
    assert encoder.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert (encoder.embed_dim, encoder.patch_size) == (24, 4)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [((2,), "got 2, expected -2 to 1"), ((-3,), "got -3, expected -2 to 1"), ((), "got none")],
)
def test_a_block_that_the_encoder_has_not_is_refused(generator, blocks, words):
    encoder = tiny_encoder(generator)

    with pytest.raises(ConfigError, match=f"blocks?: {words}"):
        encoder.intermediates(torch.zeros(1, 3, 12, 20), blocks=blocks)
