"""The step of detection: what is learnt of an image, and that it depends on the image alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.detection.source import Instances
from mae.train.detect_batch import detect_loss, target_of
from mae.train.resolve import batch_plan
from mae.weights.start_detector import initial_detector
from tests.boxes import write_coco
from tests.data.detection.test_forms import opened
from tests.jobs.test_detect_train import EVERYTHING


def test_crowds_and_boxes_without_area_are_not_learnt() -> None:
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    boxes = np.array([[0, 0, 7, 5], [3, 3, 3, 5], [2, 1, 6, 4]], dtype=np.float32)
    instances = Instances(
        (5, 7), boxes, np.array([0, 1, 2]), np.array([True, False, False]), np.ones(3),
        (None, None, polygon),
    )  # fmt: skip

    found = target_of(instances, (8, 9), masks=True)

    assert found.boxes.tolist() == [[2, 1, 6, 4]] and found.classes.tolist() == [2]
    assert found.masks is not None and found.masks.shape == (1, 8, 9)
    assert found.masks[0, 1:4, 2:6].all() and found.masks.sum() == 12
    assert target_of(instances, (8, 9), masks=False).masks is None


@pytest.mark.slow
def test_a_loss_is_the_mean_of_its_images_however_they_are_divided(tmp_path: Path) -> None:
    source = opened(write_coco(tmp_path, count=4))
    config = replace(EVERYTHING, sampled_boxes=64)  # more than an image has proposals of objects
    model, loss = initial_detector(None, config).model.train(), detect_loss(config)
    batch = training_batch(batch_plan(config, source, PixelKind("uint8", 3)), 0)

    with torch.no_grad():
        whole = loss(model, batch).item()
        parts = [loss(model, part).item() for part in batch.split(1)]
        reseeded = batch._replace(drops=(batch.drops + 0.25) % 1)  # type: ignore[operator]

        assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)
        assert len({*parts}) == 4 and loss(model, reseeded).item() != whole
