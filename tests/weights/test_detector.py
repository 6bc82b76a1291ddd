"""Detectors: saved and loaded, and started from other weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mae
from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.errors import ConfigError, WeightsError
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.encoder import Encoder
from mae.transfer.detector import Detector
from mae.weights.formats.native import save
from mae.weights.load import load_detector, load_encoder, open_classifier
from mae.weights.start_detector import dense_from_weights, initial_detector
from mae.weights.start_from import config_from_weights
from mae.weights.tools.diff import diff
from mae.weights.tools.inspect import inspect
from mae.weights.tools.whole_image import whole_image_outputs
from tests.model.tiny import D, scrambled, tiny_config, tiny_model
from tests.weights.formats.test_vitdet import DEPTH, GLOBAL, GRID, HEADS, P, S, drawn, written
from tests.weights.formats.test_vitdet import C as CHANNELS

NAMES = ("roof", "tree")
WINDOWS = DenseConfig(window=2, global_blocks=(1,), relative_positions="decomposed")


def detector(generator: torch.Generator, *, masks: bool, dense: DenseConfig = WINDOWS) -> Detector:
    backbone = PyramidBackbone(Encoder(tiny_config()), dense, channels=8)
    model = Detector(backbone, num_classes=2, masks=masks)
    model.class_names = NAMES
    return scrambled(model, generator)


def config(**fields: Any) -> DetectConfig:
    given = {"model": tiny_config(), "num_classes": 3, "masks": True, "dense": WINDOWS, "batch": 2}
    return DetectConfig(**(given | {"pyramid_channels": 8} | fields))


def from_detectron2(**fields: Any) -> DetectConfig:
    """Detection with the network of a tiny file of detectron2."""
    model = tiny_config(grid=(GRID, GRID), patch_size=P, depth=DEPTH, num_heads=HEADS)
    dense = DenseConfig(window=S, global_blocks=(GLOBAL,), relative_positions="decomposed")
    return config(**({"model": model, "dense": dense, "pyramid_channels": CHANNELS} | fields))


@pytest.mark.parametrize("dense", [WINDOWS, DenseConfig()], ids=["windows", "plain"])
def test_a_saved_detector_comes_back_bit_for_bit(
    dense: DenseConfig, generator: torch.Generator, tmp_path: Path
) -> None:
    masks = dense is WINDOWS
    model = detector(generator, masks=masks, dense=dense).eval()
    images = torch.randn(2, 3, 12, 20, generator=generator)

    found = load_detector(save(model, tmp_path / "w"), quiet=True).eval()

    assert (found.class_names, found.has_masks, found.encoder.dense) == (NAMES, masks, dense)
    before = model.state_dict()
    assert all(torch.equal(t, before[n]) for n, t in found.state_dict().items())
    with torch.no_grad():
        again = whole_image_outputs(found, images)
        for name, output in whole_image_outputs(model, images).items():
            assert torch.equal(output, again[name])


def test_a_folder_says_what_it_is(generator: torch.Generator, tmp_path: Path) -> None:
    folder = save(detector(generator, masks=True), tmp_path / "w")

    described = json.loads((folder / "config.json").read_text())
    assert (described["class_names"], described["masks"]) == ([*NAMES], True)
    assert (described["pyramid_channels"], described["dense"]["window"]) == (8, 2)
    card = (folder / "README.md").read_text()
    assert "# Detector ViT" in card and "of 2 classes" in card
    assert "pipeline_tag: object-detection" in card
    with pytest.raises(ConfigError, match="class_names: expected for a classifier, segmenter or"):
        save(Detector(detector(generator, masks=False).backbone, num_classes=2), tmp_path / "v")


def test_what_is_no_detector_is_refused(generator: torch.Generator, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no heads of a detector, expected weights of mae"):
        load_detector(save(tiny_model(generator), tmp_path / "w"))


def test_a_damaged_detector_is_refused_in_one_line(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = detector(generator, masks=False)
    model.roi_heads.box_predictor.cls_score = torch.nn.Linear(1024, 7)

    with pytest.raises(WeightsError, match=r"cls_score.weight \[7, 1024\], expected \[3, 1024\]"):
        load_detector(save(model, tmp_path / "w"))


def test_without_torchvision_its_extra_is_named(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(detector(generator, masks=False), tmp_path / "w")

    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[detect\]'"):
        load_detector(folder)
    assert inspect(folder).num_classes == 2


def test_the_encoder_of_a_detector_cannot_be_used_alone(
    generator: torch.Generator, tmp_path: Path
) -> None:
    folder = save(detector(generator, masks=False, dense=DenseConfig()), tmp_path / "w")

    with pytest.raises(WeightsError, match="it is a detector, whose encoder has no last norm"):
        load_encoder(folder)


def test_tools_know_a_detector(generator: torch.Generator, tmp_path: Path) -> None:
    model = detector(generator, masks=True)
    folder = save(model, tmp_path / "w")
    with torch.no_grad():
        model.roi_heads.mask_predictor.mask_fcn_logits.bias += 1
    other = save(model, tmp_path / "other")

    assert inspect(folder).num_classes == 2
    assert diff(folder, folder).same
    differing = {output.name for output in diff(folder, other).outputs if output.largest}
    assert differing == {"masks"}
    assert mae.convert(folder, tmp_path / "again", to="mae").difference == 0
    with pytest.raises(WeightsError, match="timm cannot hold a detector, only mae can"):
        mae.convert(folder, tmp_path / "w.safetensors", to="timm")
    with pytest.raises(WeightsError, match="is a detector, expected a classifier; use mae detect"):
        open_classifier(folder)


def test_it_starts_with_the_encoder_of_any_weights_and_new_heads(
    generator: torch.Generator, tmp_path: Path
) -> None:
    source = tiny_model(generator)
    folder = save(source, tmp_path / "w")
    images = torch.randn(2, 3, 12, 20, generator=generator)

    model, notes = initial_detector(folder, config(dense=DenseConfig()))

    (expected,) = source.encoder.intermediates(images, blocks=(1,))
    torch.testing.assert_close(model.encoder(images)[0], expected, atol=1e-5, rtol=0)
    assert [n for n in notes if "took the encoder" in n]
    again = initial_detector(folder, config()).model
    other = initial_detector(folder, config(seed=1)).model
    heads = [m.rpn.head.cls_logits.weight for m in (model, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_without_weights_it_is_new() -> None:
    model, notes = initial_detector(None, config(sampled_boxes=64))

    assert notes == []
    assert (model.encoder.config.width, model.num_classes, model.has_masks) == (D, 3, True)
    assert model.roi_heads.fg_bg_sampler.count == 64


def test_it_starts_from_a_detector_but_for_what_is_of_classes(
    generator: torch.Generator, tmp_path: Path
) -> None:
    source = detector(generator, masks=True)
    folder = save(source, tmp_path / "w")

    model, notes = initial_detector(folder, config())

    mine, theirs = model.state_dict(), source.state_dict()
    fresh = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert {name.split(".")[1] for name in fresh} == {"box_predictor", "mask_predictor"}
    assert any("took the encoder and pyramid and rpn and roi_heads" in note for note in notes)
    boxes, notes = initial_detector(folder, config(masks=False, pyramid_channels=12))
    assert boxes.backbone.out_channels == 12
    assert any(note.endswith("starts fresh; --pyramid-channels 8 takes it") for note in notes)


def test_it_starts_from_detectron2s_backbone(generator: torch.Generator, tmp_path: Path) -> None:
    tensors = drawn(generator)
    file = written(tensors, tmp_path)

    model, notes = initial_detector(file, from_detectron2())

    expected = mae.load_backbone(file, quiet=True)
    images = torch.randn(2, 3, GRID * P, GRID * P, generator=generator)
    with torch.no_grad():
        for mine, theirs in zip(model.backbone(images), expected(images), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert any("took the encoder and pyramid" in note for note in notes)
    assert any("left rpn, 8 tensors: the proposal network of a detector" in n for n in notes)


def test_relative_positions_are_resized_to_the_crop(
    generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator)
    file = written(tensors, tmp_path)
    smaller = replace(from_detectron2().model, image_size=(4 * P, 5 * P))

    model, _ = initial_detector(file, from_detectron2(model=smaller, pyramid_channels=12))

    table = tensors[f"backbone.net.blocks.{GLOBAL}.attn.rel_pos_w"]
    expected = torch.nn.functional.interpolate(table.t()[None], size=9, mode="linear")[0].t()
    torch.testing.assert_close(model.encoder.relative[GLOBAL].rel_pos_w.data, expected)
    assert model.encoder.relative[0].rel_pos_h.shape == (2 * S - 1, D // HEADS)


def test_the_network_follows_the_weights(generator: torch.Generator, tmp_path: Path) -> None:
    file, windows = written(drawn(generator), tmp_path), from_detectron2().dense
    folder = save(detector(generator, masks=False), tmp_path / "w")
    asked = DetectConfig(follow_weights=True)

    assert config_from_weights(asked, file).model.image_size == (GRID * P, GRID * P)
    assert dense_from_weights(asked, file) == windows
    assert dense_from_weights(asked, folder) == WINDOWS
    assert dense_from_weights(replace(asked, dense=windows), folder) == windows
    assert dense_from_weights(config(dense=DenseConfig()), folder) == DenseConfig()
    with pytest.raises(WeightsError, match="or detect-folder, which takes any"):
        config_from_weights(DetectConfig(), folder)
