"""Vision transformers of timm, there and back: the same tokens, the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.encoder import Encoder
from mae.weights.formats.native import save
from mae.weights.load import load_classifier, load_encoder
from mae.weights.tools.convert import convert
from tests.model.tiny import scrambled, tiny_config


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def theirs(*, size: tuple[int, int] = (12, 20), **fields: Any) -> VisionTransformer:
    given = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(img_size=size, **(given | fields)).eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "suffix"), [(1, "safetensors"), (4, "pth")])
def test_an_encoder_of_timm_computes_the_same(channels, suffix, generator, tmp_path) -> None:
    other = scrambled(theirs(size=(12, 12), in_chans=channels, global_pool=""), generator)
    other.pos_embed.data = torch.randn(1, 10, 24, generator=generator)
    path = tmp_path / f"timm.{suffix}"
    save_file(other.state_dict(), path) if channels == 1 else torch.save(other.state_dict(), path)
    images = torch.randn(2, channels, 12, 12, generator=generator)

    ours = load_encoder(path, heads=3)

    with torch.inference_mode():
        assert_close(ours(images), other.forward_features(images))
    assert torch.equal(ours.pos_embed, other.pos_embed)


@pytest.mark.parametrize(("pool", "global_pool"), [("mean", "avg"), ("cls", "token")])
def test_classifiers_cross_both_ways(pool, global_pool, generator, tmp_path) -> None:
    first = theirs(size=(12, 12), num_classes=5, global_pool=global_pool)
    first.load_state_dict(scrambled(first, generator).state_dict())
    save_file(first.state_dict(), tmp_path / "first.safetensors")
    images = torch.randn(2, 3, 12, 12, generator=generator)
    model, names = load_classifier(tmp_path / "first.safetensors", heads=3)
    assert model.pool == pool
    save(model, tmp_path / "ours", class_names=names)

    convert(tmp_path / "ours", tmp_path / "back.safetensors", to="timm")

    back = theirs(size=(12, 12), num_classes=5, global_pool=global_pool)
    back.load_state_dict(load_file(tmp_path / "back.safetensors"), strict=True)
    with torch.inference_mode():
        assert_close(model(images), first(images))
        assert torch.equal(first(images), back(images))


@pytest.mark.parametrize("channels", [2, 3])
def test_an_encoder_of_any_shape_becomes_theirs(channels, generator, tmp_path) -> None:
    ours = scrambled(Encoder(tiny_config(channels=channels, mlp_ratio=3.0)), generator)
    save(ours, tmp_path / "ours")
    images = torch.randn(2, channels, 12, 20, generator=generator)

    converted = convert(tmp_path / "ours", tmp_path / "vit.safetensors", to="timm")

    other = theirs(in_chans=channels, mlp_ratio=3.0)
    other.load_state_dict(load_file(tmp_path / "vit.safetensors"), strict=True)
    with torch.inference_mode():
        assert_close(ours(images), other.forward_features(images))
    assert (converted.difference, converted.values, converted.outputs) == (0, 2 * 16 * 24, 32)
    assert "timm does not say how pixels are scaled: divide by 255" in converted.notes[-1]
    assert load_encoder(tmp_path / "vit.safetensors").config == ours.config


def test_create_model_takes_the_file_as_its_checkpoint(generator, tmp_path) -> None:
    save(scrambled(Encoder(tiny_config()), generator), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "vit.safetensors", to="timm")
    images = torch.randn(2, 3, 12, 20, generator=generator)

    other = timm.create_model(
        "vit_tiny_patch16_224", img_size=(12, 20), patch_size=4, embed_dim=24, depth=2,
        num_heads=3, num_classes=0, checkpoint_path=str(tmp_path / "vit.safetensors"),
    )  # fmt: skip

    with torch.inference_mode():
        assert_close(load_encoder(tmp_path / "ours")(images), other.eval().forward_features(images))


def test_a_decoder_is_left_only_when_asked(generator, tmp_path) -> None:
    save(scrambled(MaskedAutoencoder(tiny_config()), generator), tmp_path / "ours")
    out = tmp_path / "vit.safetensors"

    with pytest.raises(WeightsError, match="timm cannot hold .* no decoder; give --encoder-only"):
        convert(tmp_path / "ours", out, to="timm")
    assert not out.exists()
    notes = convert(tmp_path / "ours", out, to="timm", encoder_only=True).notes

    assert any("left decoder, 20 tensors: only reconstruction needs it" in note for note in notes)


@pytest.mark.parametrize("to", ["timm", "facebook"])
def test_norms_of_another_eps_are_not_written(to, generator, tmp_path) -> None:
    save(scrambled(Encoder(tiny_config(norm_eps=1e-12)), generator), tmp_path / "ours")

    with pytest.raises(WeightsError, match="its norm eps is 1e-6, that of this model 1e-12"):
        convert(tmp_path / "ours", tmp_path / "x.safetensors", to=to)

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_layer_scale_is_named_as_the_cause(generator, tmp_path: Path) -> None:
    other = theirs(size=(12, 12), init_values=1e-5)
    save_file(other.state_dict(), tmp_path / "vit.safetensors")

    with pytest.raises(WeightsError, match="4 unexpected .*ls1.gamma.*it has layer scale"):
        load_encoder(tmp_path / "vit.safetensors", heads=3)
