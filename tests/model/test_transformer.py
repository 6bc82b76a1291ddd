from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.model.transformer import Attention, Block, drop_scales
from mae.weights.formats.facebook import to_theirs
from tests.model.plain import plain_attention, plain_blocks
from tests.model.tiny import batch, scrambled, tiny_config, tiny_model


@pytest.mark.parametrize("few", [0, 64])
def test_attention_equals_attention_written_out(generator, monkeypatch, few):
    monkeypatch.setattr("mae.model.transformer.FEW_TOKENS", few)
    attention = scrambled(Attention(24, num_heads=3), generator).double()
    tokens = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)

    mixed = attention(tokens)

    torch.testing.assert_close(mixed, plain_attention(attention, tokens), rtol=0, atol=1e-12)


def test_a_block_equals_a_pre_norm_block_written_out(generator):
    block = scrambled(Block(24, num_heads=3, mlp_ratio=4.0, norm_eps=1e-6), generator).double()
    tokens = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)

    after = block(tokens)

    torch.testing.assert_close(after, plain_blocks([block], tokens), rtol=0, atol=1e-12)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_what_is_computed_again_changes_no_bit_of_the_gradients(generator, every, half):
    model = tiny_model(generator, depth=5, decoder_depth=3)
    images, noise = batch(generator, model.config)

    def take() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, half):
            loss = model(images, noise=noise).loss
        return gradients(model, loss)

    expected = take()
    model.encoder.blocks.checkpoint_every = model.decoder.blocks.checkpoint_every = every

    assert all(map(torch.equal, take(), expected))


def test_dropped_paths_are_dropped_again_where_blocks_are_computed_again(generator):
    model = Classifier(Encoder(tiny_config(depth=3)), num_classes=7, drop_path=0.6)
    model = scrambled(model, generator)
    images, _ = batch(generator, model.encoder.config, images=5)
    drops = torch.rand(5, 6, generator=generator)

    expected = gradients(model, model(images, drops=drops).square().sum())
    model.encoder.blocks.checkpoint_every = 2

    found = gradients(model, model(images, drops=drops).square().sum())
    assert all(map(torch.equal, found, expected))


def test_nothing_is_computed_again_where_nothing_is_learnt(generator, monkeypatch):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)
    model.encoder.blocks.checkpoint_every = 1
    monkeypatch.setattr("mae.model.transformer.checkpoint", None)

    with torch.no_grad():
        model(images, noise=noise)
    model.eval()(images, noise=noise).loss.backward()


def test_dropped_paths_are_timms_for_the_same_draws(generator, monkeypatch):
    model = Classifier(Encoder(tiny_config(depth=3)), num_classes=7, drop_path=0.6)
    model = scrambled(model, generator)
    other = timm.models.VisionTransformer(
        img_size=(12, 20), patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=7,
        global_pool="avg", drop_path_rate=0.6,
    )  # fmt: skip
    other.load_state_dict({to_theirs(name): t for name, t in model.state_dict().items()})
    images, _ = batch(generator, model.encoder.config, images=9)
    drops = torch.rand(9, 6, generator=generator)
    # timm draws nothing for the first block, which is never dropped.
    queue = iter(drops[:, 2:].T)
    drawn = lambda t, keep: t.copy_(next(queue).view(t.shape) < keep)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "bernoulli_", drawn)

    scores = model(images, drops=drops)

    torch.testing.assert_close(scores, other.train()(images), rtol=1e-5, atol=1e-5)
    assert not list(queue)
    assert not torch.allclose(scores, model(images))


def test_the_last_block_is_dropped_at_the_rate_and_the_first_never():
    scales = drop_scales(
        torch.rand(100_000, 6, generator=torch.Generator().manual_seed(0)), rate=0.3
    )

    dropped = (scales == 0).double().mean(dim=0)
    assert dropped.tolist() == pytest.approx([0, 0, 0.15, 0.15, 0.3, 0.3], abs=0.005)
    assert scales.mean(dim=0).tolist() == pytest.approx([1] * 6, abs=0.01)


def test_a_rate_of_zero_changes_no_bit(generator):
    model = scrambled(Classifier(Encoder(tiny_config()), num_classes=7), generator)
    images, _ = batch(generator, model.encoder.config)

    assert torch.equal(model(images, drops=torch.rand(2, 4)), model(images))
