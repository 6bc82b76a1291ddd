"""What a run of detection settles before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.data.detection.check import check
from mae.data.detection.jitter import JitterRule
from mae.data.detection.layout import find_boxed
from mae.data.detection.source import BoxSource
from mae.errors import DataError
from mae.progress import Progress
from mae.train.resolve import batch_plan, new_state, resolve
from mae.weights.start_detector import initial_detector
from tests.boxes import CLASSES, write_coco, write_yolo
from tests.model.tiny import tiny_config
from tests.weights.formats.test_vitdet import DEPTH, GLOBAL, GRID, P, S, drawn, written

ASKED = DetectConfig(
    model=tiny_config(), batch=2, pyramid_channels=8, sampled_boxes=32, drop_path=0.1, device="cpu"
)


def opened(root: Path) -> BoxSource:
    layout = find_boxed(root)
    assert layout.whole is not None
    part = layout.whole()
    return check([part], max_bad=0.1, progress=Progress(quiet=True)).source(part)


def test_classes_and_masks_are_those_of_the_data(tmp_path: Path) -> None:
    masked = opened(write_coco(tmp_path / "coco", count=3))
    boxed = opened(write_yolo(tmp_path / "yolo", count=3))

    config = resolve(ASKED, masked).config

    assert (config.num_classes, config.masks) == (len(CLASSES), True)
    assert resolve(ASKED, boxed).config.masks is False
    assert resolve(replace(ASKED, masks=False), masked).config.masks is False
    with pytest.raises(DataError, match="data: not every object has a mask; use --masks no"):
        resolve(replace(ASKED, masks=True), boxed)


def test_batches_are_jittered_on_the_mean_colour(tmp_path: Path) -> None:
    found = resolve(ASKED, opened(write_coco(tmp_path, count=3)))

    plan = batch_plan(found.config, found.source, found.kind)

    # ImageNet's means of colour images, 0.485, 0.456 and 0.406, times 255
    assert plan.annotated == JitterRule(scale=(0.1, 2.0), fill=(124.0, 116.0, 104.0))
    assert plan.num_drops == 4 + 1  # branches of two blocks, and the seed of the boxes
    still = replace(found.config, drop_path=0.0)
    assert batch_plan(still, found.source, found.kind).num_drops == 1


def test_a_network_follows_a_detector_of_detectron2(tmp_path: Path) -> None:
    file = written(drawn(torch.Generator().manual_seed(0)), tmp_path)
    source = opened(write_coco(tmp_path / "d", count=3))
    asked = DetectConfig(follow_weights=True, batch=2, train_blocks=1, pyramid_channels=8)

    config = resolve(asked, source, weights=file).config

    assert (config.model.image_size, config.model.depth) == ((GRID * P, GRID * P), DEPTH)
    assert config.dense == DenseConfig(
        window=S, global_blocks=(GLOBAL,), relative_positions="decomposed"
    )
    state = new_state(initial_detector(file, config).model, config)
    trained = {n for n, p in state.model.named_parameters() if p.requires_grad}
    of_encoder = {n.split(".")[3] for n in trained if n.startswith("backbone.encoder.")}
    assert of_encoder == {f"{DEPTH - 1}"}
    assert any(name.startswith("backbone.pyramid.") for name in trained)
