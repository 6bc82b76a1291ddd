"""Segmenters: saved and loaded, and started from other weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mae
from mae.config.dense import DenseConfig, HeadConfig
from mae.config.segment import SegmentConfig
from mae.errors import ConfigError, WeightsError
from mae.model.classifier import Classifier
from mae.model.dense.segmenter import Segmenter
from mae.model.encoder import Encoder
from mae.recipes.segmenting import ADE20K, SEGMENT_FOLDER
from mae.weights.formats.native import save
from mae.weights.load import load_encoder, load_segmenter
from mae.weights.start_from import config_from_weights, initial_segmenter
from mae.weights.tools.diff import diff
from mae.weights.tools.inspect import inspect
from tests.model.tiny import D, scrambled, tiny_config, tiny_model

NAMES = ("sky", "tree", "road")
TABLE = DenseConfig(relative_positions="table", layer_scale=1.0)
WINDOWS = DenseConfig(window=2, global_blocks=(1,), relative_positions="decomposed")


def segmenter(generator: torch.Generator, dense: DenseConfig, **head: Any) -> Segmenter:
    given = {"channels": 6, "auxiliary_channels": 4} | head
    model = Segmenter(Encoder(tiny_config()), num_classes=3, dense=dense, head=HeadConfig(**given))
    model.class_names = NAMES
    return scrambled(model, generator)


def config(**fields: Any) -> SegmentConfig:
    head = HeadConfig(channels=6, norm="group", auxiliary_channels=4)
    given = {"model": tiny_config(), "num_classes": 3, "head": head, "dense": TABLE, "batch": 2}
    return SegmentConfig(**(given | fields))


@pytest.mark.parametrize(
    ("dense", "head"),
    [
        (TABLE, {"norm": "batch"}),
        (WINDOWS, {"norm": "group"}),
        (DenseConfig(), {"kind": "linear", "blocks": (0, 1)}),
    ],
    ids=["upernet", "windows", "linear"],
)
def test_a_saved_segmenter_comes_back_bit_for_bit(
    dense: DenseConfig, head: dict[str, Any], generator: torch.Generator, tmp_path: Path
) -> None:
    model = segmenter(generator, dense, **head)
    images = torch.randn(2, 3, 12, 20, generator=generator)
    model(images)  # batch norms count and average

    found = load_segmenter(save(model, tmp_path / "w"), quiet=True)

    assert (found.class_names, found.config, found.encoder.dense) == (NAMES, model.config, dense)
    before = model.state_dict()
    assert {n: t.dtype for n, t in found.state_dict().items()} == {
        n: t.dtype for n, t in before.items()
    }
    assert all(torch.equal(t, before[n]) for n, t in found.state_dict().items())
    assert torch.equal(found.eval()(images).logits, model.eval()(images).logits)


def test_a_folder_says_what_it_is(generator: torch.Generator, tmp_path: Path) -> None:
    folder = save(segmenter(generator, TABLE), tmp_path / "w")

    described = json.loads((folder / "config.json").read_text())
    assert described["class_names"] == [*NAMES]
    assert described["head"]["kind"] == "upernet"
    assert described["dense"]["relative_positions"] == "table"
    card = (folder / "README.md").read_text()
    assert "# Segmenter ViT" in card and "of 3 classes" in card
    assert "pipeline_tag: image-segmentation" in card


def test_a_segmenter_has_class_names(generator: torch.Generator, tmp_path: Path) -> None:
    model = segmenter(generator, TABLE)
    model.class_names = ()

    with pytest.raises(ConfigError, match="class_names: expected for a classifier, segmenter"):
        save(model, tmp_path / "w")


def test_what_is_no_segmenter_is_refused(generator: torch.Generator, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no segmenter's head"):
        load_segmenter(save(tiny_model(generator), tmp_path / "w"))


def test_the_encoder_of_a_segmenter_cannot_be_used_alone(
    generator: torch.Generator, tmp_path: Path
) -> None:
    folder = save(segmenter(generator, DenseConfig()), tmp_path / "w")

    with pytest.raises(WeightsError, match="it is a segmenter, whose encoder has no last norm"):
        load_encoder(folder)


def test_it_starts_with_the_encoder_of_any_weights_and_a_new_head(
    generator: torch.Generator, tmp_path: Path
) -> None:
    source = tiny_model(generator)
    images = torch.randn(2, 3, 12, 20, generator=generator)

    model, notes = initial_segmenter(save(source, tmp_path / "w"), config())

    expected = source.encoder.intermediates(images, blocks=(0, 0, 0, 1))
    torch.testing.assert_close(model.encoder(images), expected, atol=1e-5, rtol=0)
    assert [n for n in notes if "took the encoder" in n]
    again = initial_segmenter(tmp_path / "w", config()).model
    other = initial_segmenter(tmp_path / "w", config(seed=1)).model
    heads = [m.head.fusion.conv.weight for m in (model, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_it_starts_from_a_classifier(generator: torch.Generator, tmp_path: Path) -> None:
    classifier = scrambled(Classifier(Encoder(tiny_config()), num_classes=7), generator)
    folder = save(classifier, tmp_path / "w", class_names=[*"abcdefg"])

    found = initial_segmenter(folder, config()).model

    own = dict(found.encoder.blocks.named_parameters())
    for name, tensor in classifier.encoder.blocks.named_parameters():
        assert torch.equal(own[name], tensor)


def test_it_starts_from_a_segmenter_without_what_that_added(
    generator: torch.Generator, tmp_path: Path
) -> None:
    save(segmenter(generator, TABLE), tmp_path / "table")
    save(segmenter(generator, WINDOWS), tmp_path / "windows")

    found = initial_segmenter(tmp_path / "table", config()).model
    windowed = initial_segmenter(tmp_path / "windows", config(dense=WINDOWS)).model

    assert not found.encoder.relative[0].table.any()
    assert windowed.encoder.cls_token is None
    with pytest.raises(WeightsError, match=r"1 missing \(encoder.cls_token\)"):
        initial_segmenter(tmp_path / "windows", config())


def test_without_weights_it_is_new(tmp_path: Path) -> None:
    model, notes = initial_segmenter(None, config())

    assert notes == []
    assert model.encoder.config.width == D


def test_positions_are_resized_to_the_crop(generator: torch.Generator, tmp_path: Path) -> None:
    source = tiny_model(generator)
    folder = save(source, tmp_path / "w")
    larger = replace(tiny_config(), image_size=(24, 28))

    model = initial_segmenter(folder, config(model=larger)).model

    expected = source.encoder.positions((6, 7))
    torch.testing.assert_close(model.encoder.pos_embed, expected, check_stride=False)
    assert model.encoder.relative[0].table.shape == (11 * 13 + 3, 3)


def test_the_network_is_that_of_the_weights_at_the_size_asked(
    generator: torch.Generator, tmp_path: Path
) -> None:
    folder = save(tiny_model(generator), tmp_path / "w")

    asked = replace(SEGMENT_FOLDER, resize=(16, 24))

    found = config_from_weights(asked, folder, num_classes=2).model
    assert (found.image_size, found.width) == ((16, 24), D)
    with pytest.raises(WeightsError, match="or segment-folder, which takes any"):
        config_from_weights(ADE20K, folder, num_classes=150)


def test_embedding_with_a_segmenter_says_what_to_give(
    generator: torch.Generator, tmp_path: Path
) -> None:
    folder = save(segmenter(generator, TABLE), tmp_path / "w")

    with pytest.raises(mae.MaeError, match="give the weights that it was trained from"):
        mae.embed(folder, torch.zeros(1, 3, 12, 20), quiet=True)


def test_tools_know_a_segmenter(generator: torch.Generator, tmp_path: Path) -> None:
    folder = save(segmenter(generator, TABLE, norm="batch"), tmp_path / "w")

    assert inspect(folder).num_classes == 3
    assert diff(folder, folder).same
    assert mae.convert(folder, tmp_path / "again", to="mae").difference == 0
    assert load_segmenter(tmp_path / "again", quiet=True).class_names == NAMES
    with pytest.raises(WeightsError, match="timm cannot hold a segmenter, only mae can"):
        mae.convert(folder, tmp_path / "w.safetensors", to="timm")
    with pytest.raises(WeightsError, match="is a segmenter, expected a classifier; use mae seg"):
        mae.predict(folder, torch.zeros(1, 3, 12, 20), quiet=True)
