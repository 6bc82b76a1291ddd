"""`Dinov2Model` of transformers, there and back: the same tokens at any size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model
from transformers.utils import logging

from mae.config.model import ModelConfig
from mae.errors import MaeError, WeightsError
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.formats.native import save
from mae.weights.load import load_encoder, open_encoder
from mae.weights.tools.convert import convert
from mae.weights.tools.inspect import inspect
from tests.model.tiny import scrambled, tiny_config, tiny_model

logging.disable_progress_bar()

SQUARE: dict[str, Any] = {"grid": (3, 3), "mlp_ratio": 3.0}
OTHER_SIZES = [(12, 12), (20, 28), (44, 8), (4, 36)]  # as trained; odd grids; 36 x 4: 9 patches too


def ours(generator: torch.Generator, **fields: Any) -> Encoder:
    """An encoder whose position table is drawn, so that it could not be computed anew."""
    encoder = scrambled(Encoder(tiny_config(**(SQUARE | fields))), generator)
    encoder.pos_embed.data = torch.randn(encoder.pos_embed.shape, generator=generator)
    return encoder


def theirs(generator: torch.Generator, **fields: Any) -> Dinov2Model:
    """A network of theirs with every value drawn, the layer scales too."""
    given = {"image_size": 12, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 3, "mlp_ratio": 3}  # fmt: skip
    return scrambled(Dinov2Model(Dinov2Config(**(given | fields))), generator).eval()


def opened(path: Path, **how: Any) -> Dinov2Model:
    """What transformers loads from a folder: all of it, and nothing else."""
    model, info = Dinov2Model.from_pretrained(path, output_loading_info=True, **how)
    assert not any(info.values()), info
    return model.eval()


@torch.inference_mode()
def assert_same(encoder: Encoder, other: Dinov2Model, sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(2, encoder.config.channels, *size, generator=generator)
        tokens, found = encoder(images), other(images)
        torch.testing.assert_close(found.last_hidden_state, tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooler_output, tokens[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"channels": 4, "norm_eps": 1e-12, "num_heads": 6}])
def test_what_we_write_is_their_function_at_any_size(fields, generator, tmp_path) -> None:
    encoder = ours(generator, **fields)
    save(encoder, tmp_path / "ours")

    converted = convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")

    other = opened(tmp_path / "theirs")
    assert_same(encoder, other, OTHER_SIZES)
    assert torch.equal(other.embeddings.position_embeddings, encoder.pos_embed)
    assert all((layer.layer_scale1.lambda1 == 1).all() for layer in other.encoder.layer)
    assert not other.embeddings.mask_token.any()
    assert type(AutoModel.from_pretrained(tmp_path / "theirs")) is Dinov2Model
    assert (converted.difference, converted.values) == (0, 2 * 10 * 24)
    assert inspect(tmp_path / "theirs").format == "dinov2"


@pytest.mark.slow
def test_the_shapes_of_a_vit_b_are_their_function_at_odd_sizes(generator, tmp_path) -> None:
    encoder = Encoder(ModelConfig(depth=3))  # the shapes of a ViT-B, fewer times
    encoder.pos_embed.data += 0.02 * torch.randn(encoder.pos_embed.shape, generator=generator)
    save(encoder, tmp_path / "ours")

    convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")

    assert_same(encoder, opened(tmp_path / "theirs"), [(208, 304), (240, 112)])


@pytest.mark.slow
def test_their_model_is_ours_through_onnx(generator, tmp_path) -> None:
    encoder = ours(generator)
    save(encoder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")
    images = torch.randn(3, 3, 20, 28, generator=generator)

    program = torch.onnx.export(opened(tmp_path / "theirs"), (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "dinov2.onnx")

    session = onnxruntime.InferenceSession(
        tmp_path / "dinov2.onnx", providers=["CPUExecutionProvider"]
    )
    tokens = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(tokens), encoder(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("older", [True, False])
def test_what_transformers_saves_is_read_with_its_layer_scale(older, generator, tmp_path) -> None:
    other = theirs(generator, layer_norm_eps=1e-5)
    other.save_pretrained(tmp_path, save_original_format=older)

    encoder, notes = open_encoder(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)

    assert (encoder.config.num_heads, encoder.config.norm_eps) == (3, 1e-5)
    assert "left unused, 1 tensors" in notes[1]
    assert_same(encoder, other, OTHER_SIZES)


def test_images_are_scaled_by_their_processor_as_by_us(generator, tmp_path) -> None:
    encoder = ours(generator)
    save(encoder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 12, 12), dtype=np.uint8))

    scaled = AutoImageProcessor.from_pretrained(tmp_path / "theirs")(image, return_tensors="pt")

    expected = encoder.normalize(image[None])
    torch.testing.assert_close(scaled["pixel_values"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"grid": (3, 5)}, r"its grid of patches is square, that of this model \(3, 5\)"),
        ({"grid": (2, 8)}, r"its grid of patches is square, that of this model \(2, 8\)"),
        ({"mlp_ratio": 2.5}, "its mlp_ratio is a whole number, that of this model 2.5"),
    ],
)
def test_what_their_class_cannot_compute_is_not_written(fields, why, generator, tmp_path) -> None:
    save(ours(generator, **fields), tmp_path / "ours")

    with pytest.raises(WeightsError, match=f"dinov2 cannot hold this model: {why}"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_decoder_and_head_are_left_only_when_asked(generator, tmp_path) -> None:
    save(tiny_model(generator, **SQUARE), tmp_path / "whole")
    head = Classifier(Encoder(tiny_config(**SQUARE)), num_classes=2, pool="cls")
    save(scrambled(head, generator), tmp_path / "head", class_names=("a", "b"))

    for name, lacks in (("whole", "decoder"), ("head", "classifier's head")):
        with pytest.raises(WeightsError, match=f"it has no {lacks}; give --encoder-only"):
            convert(tmp_path / name, tmp_path / "theirs", to="dinov2")
        convert(tmp_path / name, tmp_path / f"{name}-theirs", to="dinov2", encoder_only=True)

    assert_same(load_encoder(tmp_path / "head"), opened(tmp_path / "head-theirs"), [(20, 28)])


def test_a_classifier_of_the_mean_is_not_written(generator, tmp_path) -> None:
    model = scrambled(Classifier(Encoder(tiny_config(**SQUARE)), num_classes=2), generator)
    save(model, tmp_path / "ours", class_names=("a", "b"))

    with pytest.raises(WeightsError, match="the encoder's norm, which fc_norm replaced"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="dinov2")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: expected False, got True"),
        ({"hidden_act": "relu"}, "hidden_act: expected gelu, got 'relu'"),
        ({"qkv_bias": False}, "qkv_bias: expected True, got False"),
    ],
)
def test_a_configuration_that_we_cannot_follow_is_refused(
    change, message, generator, tmp_path
) -> None:
    theirs(generator).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))

    with pytest.raises(MaeError, match=re.escape(message)):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.layer.1.layer_scale2.lambda1", torch.ones(23), "is of shape [23]"),
        ("encoder.layer.1.layer_scale2.lambda1", torch.ones(()), "expected one factor per row"),
        ("encoder.layer.0.layer_scale1.lambda1", torch.full((24,), torch.nan), "not finite"),
        ("embeddings.register_tokens", torch.ones(1, 4, 24), "register tokens"),
        ("encoder.layer.0.mlp.fc2.weight", None, "1 missing (encoder.layer.0.mlp.fc2.weight)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, value: Tensor | None, message: str, generator, tmp_path: Path
) -> None:
    theirs(generator).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match=re.escape(message)):
        load_encoder(tmp_path)
