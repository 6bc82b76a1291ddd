"""Models of transformers, saved by its own saver, are the same function here; and back again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from transformers.utils import logging

from mae.errors import MaeError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.formats.native import save
from mae.weights.load import load, load_classifier, load_encoder, open_encoder, open_model
from mae.weights.tools.convert import convert
from tests.model.tiny import scrambled, tiny_config, tiny_model

logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 72,
}
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "mask_ratio": 0.7,
}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def theirs(generator: torch.Generator, **fields: Any) -> ViTMAEForPreTraining:
    """Draw everything, the position tables too, so that none could be computed anew."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**(SIZES | DECODER | fields)))
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        table.data = torch.randn(table.shape, generator=generator)
    return scrambled(model, generator).eval()


def drawn(generator: torch.Generator, *, channels: int = 3) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, channels, 12, 12, generator=generator)
    return images, torch.rand(2, 9, generator=generator)


@torch.inference_mode()
def assert_same(ours: MaskedAutoencoder, other: Any, generator: torch.Generator) -> None:
    """Loss, predictions and features, as both orders of summation in float32 allow."""
    images, noise = drawn(generator, channels=ours.config.channels)
    expected, found = other(images, noise=noise), ours(images, noise=noise)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    assert torch.equal(found.mask, expected.mask.bool())
    pred = ours.reconstruct(images, noise=noise).pred
    torch.testing.assert_close(pred, expected.logits, rtol=1e-5, atol=1e-5)
    # All patches in their own order: nothing hidden, nothing shuffled.
    other.config.mask_ratio = 0.0
    tokens = other.vit(images, noise=torch.arange(9.0).expand(2, 9)).last_hidden_state
    torch.testing.assert_close(ours.encoder(images), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("older", "fields"),
    [
        (True, {"norm_pix_loss": True, "layer_norm_eps": 1e-6}),
        (False, {"norm_pix_loss": False, "layer_norm_eps": 1e-12, "num_channels": 1}),
        (True, {"layer_norm_eps": 1e-3, "num_channels": 4}),
    ],
)
def test_what_transformers_saves_is_the_same_function(older, fields, generator, tmp_path) -> None:
    other = theirs(generator, **fields)
    other.save_pretrained(tmp_path, save_original_format=older)

    ours, notes = open_model(tmp_path)

    assert ours.config.num_heads == 3 and ours.config.decoder_heads == 2
    assert ours.config.norm_eps == fields["layer_norm_eps"]
    assert len(ours.state_dict()) == len(other.state_dict()) - 3 * 4  # q, k, v are one
    assert torch.equal(ours.encoder.pos_embed, other.vit.embeddings.position_embeddings)
    assert_same(ours, other, generator)
    assert all("assumed" in n or "took the encoder and decoder" in n for n in notes)


def test_the_spelling_of_the_published_files_is_read(generator, tmp_path) -> None:
    other = theirs(generator)
    older = {"attention.q_proj": "attention.attention.query",
             "attention.k_proj": "attention.attention.key",
             "attention.v_proj": "attention.attention.value",
             "attention.o_proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
             "vit.layers": "vit.encoder.layer"}  # fmt: skip
    tensors = {}
    for name, tensor in other.state_dict().items():
        for new, old in older.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    assert "decoder.decoder_layers.0.attention.attention.query.bias" in tensors
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    other.config.save_pretrained(tmp_path)

    assert_same(load(tmp_path), other, generator)


def test_without_a_configuration_the_defaults_of_transformers_are_said(generator, tmp_path) -> None:
    other = theirs(generator, mask_ratio=0.75)
    other.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()

    ours, notes = open_model(tmp_path / "model.safetensors", heads=3, decoder_heads=2)

    assert "norm eps 1e-12 (--norm-eps), " in notes[0]
    assert "a target of plain pixels (--normalize-target)" in notes[0]
    assert_same(ours, other, generator)


@pytest.mark.parametrize("older", [True, False])
def test_files_in_parts_are_read_by_their_index(older, generator, tmp_path) -> None:
    other = theirs(generator)
    other.save_pretrained(tmp_path, max_shard_size="20KB", save_original_format=older)
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    assert_same(load(tmp_path), other, generator)
    assert load(index).config == load(tmp_path).config


def test_an_encoder_alone_is_read_with_and_without_its_prefix(generator, tmp_path) -> None:
    whole = theirs(generator)
    whole.vit.save_pretrained(tmp_path / "bare")
    whole.save_pretrained(tmp_path / "whole")
    images, _ = drawn(generator)

    bare, notes = open_encoder(tmp_path / "bare")

    assert "took the encoder" in notes[1]
    assert notes[-1] == "decoder: not in this file; reconstruction is not possible, features are"
    assert torch.equal(bare(images), load_encoder(tmp_path / "whole")(images))


def test_a_model_set_to_hide_nothing_is_taken(generator, tmp_path) -> None:
    theirs(generator, mask_ratio=0.0).save_pretrained(tmp_path)

    model, notes = open_model(tmp_path)

    assert model.objective.mask_ratio == 0.75
    assert "a mask ratio of 0 hides nothing; assumed 0.75" in notes[0]


def test_a_classifier_scores_as_in_transformers(generator, tmp_path) -> None:
    labels = {i: f"class {i}" for i in range(11)}
    other = ViTForImageClassification(ViTConfig(**SIZES, id2label=labels))
    other.vit.embeddings.position_embeddings.data.normal_(generator=generator)
    scrambled(other, generator).eval().save_pretrained(tmp_path)
    images, _ = drawn(generator)

    model, names = load_classifier(tmp_path)

    with torch.inference_mode():
        torch.testing.assert_close(model(images), other(images).logits, rtol=1e-5, atol=1e-5)
    assert names == tuple(labels.values())


SQUARE: dict[str, Any] = {"grid": (3, 3), "mlp_ratio": 3.0}


def square(generator: torch.Generator, **fields: Any) -> MaskedAutoencoder:
    return tiny_model(generator, **(SQUARE | {"mask_ratio": 0.7} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"normalize_target": True},
        {"normalize_target": False, "channels": 1, "norm_eps": 1e-12},
        {"channels": 4, "decoder_depth": 2},
    ],
)
def test_what_we_write_transformers_loads_whole(fields, generator, tmp_path) -> None:
    ours = square(generator, **fields)
    ours.encoder.pos_embed.data = ours.encoder.pos_embed[:, torch.randperm(10)]
    save(ours, tmp_path / "ours")

    converted = convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")

    other, info = ViTMAEForPreTraining.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(other.vit.embeddings.position_embeddings, ours.encoder.pos_embed)
    assert_same(ours, other.eval(), generator)
    assert converted.difference == 0
    assert converted.values == 2 * (10 * 24 + 9 * 16 * ours.config.channels) + 1
    again = load(tmp_path / "theirs")
    assert (again.config, again.objective) == (ours.config, ours.objective)


def test_an_encoder_becomes_their_encoder(generator, tmp_path) -> None:
    ours = scrambled(Encoder(tiny_config(**SQUARE)), generator)
    save(ours, tmp_path / "ours")

    convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")

    other, info = ViTMAEModel.from_pretrained(
        tmp_path / "theirs", output_loading_info=True, mask_ratio=0.0
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    images, _ = drawn(generator)
    with torch.inference_mode():
        tokens = other.eval()(images, noise=torch.arange(9.0).expand(2, 9)).last_hidden_state
        torch.testing.assert_close(ours(images), tokens, rtol=1e-5, atol=1e-5)


def test_a_classifier_of_the_cls_token_becomes_theirs(generator, tmp_path) -> None:
    names = ("shoe", "bag", "coat", "hat")
    ours = scrambled(
        Classifier(Encoder(tiny_config(**SQUARE)), num_classes=4, pool="cls"), generator
    )
    save(ours, tmp_path / "ours", class_names=names)

    convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")

    other, info = ViTForImageClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert other.config.id2label == dict(enumerate(names))
    images, _ = drawn(generator)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), other.eval()(images).logits, rtol=1e-5, atol=1e-5)


def test_images_are_scaled_by_their_processor_as_by_us(generator, tmp_path) -> None:
    ours = square(generator)
    save(ours, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")
    image = np.random.default_rng(0).integers(0, 256, (3, 12, 12), dtype=np.uint8)

    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    scaled = processor(torch.from_numpy(image), return_tensors="pt")["pixel_values"]

    expected = ours.normalize(torch.from_numpy(image)[None])
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"grid": (3, 5)}, r"grid of patches is square, that of this model \(3, 5\)"),
        ({"target_eps": 1e-3}, "target has an eps of 1e-6, that of this model 0.001"),
        ({"mask_kind": "block"}, "it masks at random, this model otherwise"),
        ({"grid": (10, 10), "mask_ratio": 0.9}, "keeps 9 of 100 patches .* this model 10"),
    ],
)
def test_what_their_class_cannot_compute_is_not_written(fields, why, generator, tmp_path) -> None:
    save(square(generator, **fields), tmp_path / "ours")

    with pytest.raises(WeightsError, match=f"huggingface cannot hold this model: .*{why}"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_a_classifier_of_the_mean_is_not_written(generator, tmp_path) -> None:
    ours = scrambled(Classifier(Encoder(tiny_config(**SQUARE)), num_classes=2), generator)
    save(ours, tmp_path / "ours", class_names=("a", "b"))

    with pytest.raises(WeightsError, match="it classifies the cls token, .*fc_norm"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


@pytest.fixture
def folder(generator: torch.Generator, tmp_path: Path) -> Path:
    theirs(generator).save_pretrained(tmp_path / "hf", save_original_format=False)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: expected gelu, got 'relu'"),
        ({"qkv_bias": False}, "qkv_bias: expected True, got False"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: expected a number"),
        ({"patch_size": [4, 2]}, "patch_size: expected a whole number"),
        ({"patch_size": [[4], [4]]}, "patch_size: expected a whole number"),
        ({"image_size": [12, 16]}, "it is of another image size"),
        ({"id2label": {"0": "a", "7": "b"}}, "id2label: expected a name for each"),
        ({"rescale_factor": "x"}, "rescale_factor: expected 1/255, 1/65535 or none, got 'x'"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "pixels: got a mean for 1 channels"),
    ],
)
def test_a_configuration_that_we_cannot_follow_is_refused(change, message, folder) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": True} | change))

    with pytest.raises(MaeError, match=re.escape(message)):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "vit.layers.1.attention.k_proj.bias",
        "vit.layernorm.weight",
        "decoder.decoder_layers.0.mlp.fc2.weight",
        "decoder.mask_token",
    ],
)
def test_what_is_missing_is_named_as_they_do(name, folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")

    with pytest.raises(WeightsError, match="1 missing") as raised:
        load(folder / "pytorch_model.bin")

    assert name in str(raised.value)


def test_a_part_that_leads_elsewhere_is_refused(folder) -> None:
    index = folder / "model.safetensors.index.json"
    for place in ("../hf/model.safetensors", "absent.safetensors"):
        index.write_text(json.dumps({"weight_map": {"vit.layernorm.bias": place}}))
        with pytest.raises(WeightsError, match="which is no file beside it"):
            load(index)
    index.write_text(json.dumps({"weight_map": {"vit.layernorm.bias": "model.safetensors"}}))
    with pytest.raises(WeightsError, match="are not in both the file and"):
        load(index)


def test_the_eps_of_transformers_is_another_function(generator, tmp_path) -> None:
    """Measured: why it is honoured and not only mentioned (decision 0012)."""
    ViTMAEForPreTraining(ViTMAEConfig(**(SIZES | DECODER))).save_pretrained(tmp_path)
    images, _ = drawn(generator)

    honoured = load_encoder(tmp_path)
    published = Encoder(replace(honoured.config, norm_eps=1e-6))
    published.load_state_dict(honoured.state_dict())

    assert honoured.config.norm_eps == 1e-12
    assert (honoured(images) - published(images)).abs().max() > 1e-5
