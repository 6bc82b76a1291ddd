"""Segmentation and detection on a GPU are those on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.config.dense import DenseConfig
from mae.jobs.detect_evaluate import detect_evaluate
from mae.jobs.detect_train import detect_train
from mae.jobs.segment_evaluate import segment_evaluate
from mae.jobs.segment_train import segment_train
from mae.model.dense.segmenter import segmentation_loss
from mae.runs.log import read_rows
from mae.transfer.detector import Target
from tests.boxes import write_coco
from tests.gpu.test_model import EXACT, GRADIENTS, assert_near
from tests.jobs import test_detect_train, test_segment
from tests.model.dense.test_segmenter import CLASSES, UPERNET, WINDOWED, segmenter
from tests.segments import write_segmented
from tests.transfer.test_detector import detector, image, losses, seeded, target

DEVICES = ("cpu", "cuda")
ROUNDED = 5e-2
"""Of the loss, where two proposals of nearly equal scores may change places."""


@pytest.mark.parametrize("dense", [UPERNET, WINDOWED, DenseConfig()])
def test_a_segmenter_learns_what_it_learns_on_a_cpu(
    generator: torch.Generator, dense: DenseConfig
) -> None:
    model = segmenter(generator, dense=dense, norm="group")
    images = torch.randn(2, 3, 12, 20, generator=generator)
    masks = torch.randint(0, CLASSES, (2, 12, 20), generator=generator)
    found = list[Any]()
    for device in DEVICES:
        model.to(device).zero_grad()
        loss = segmentation_loss(
            model(images.to(device)), masks.to(device), ignore_index=255, auxiliary_weight=0.4
        )
        loss.backward()
        named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), named))

    (expected, here), (loss, there) = found
    assert_near(loss, expected, EXACT)
    assert here.keys() == there.keys()
    for name, gradient in there.items():
        assert_near(gradient, here[name], GRADIENTS, name)


def test_a_detector_loses_what_it_loses_on_a_cpu(generator: torch.Generator) -> None:
    model, images = detector().train(), image(generator)
    found = []
    for device in DEVICES:
        own = Target(*(value.to(device) for value in target() if value is not None))
        found.append(losses(model.to(device), images.to(device), [own], generators=[seeded(3)]))

    expected, there = found
    assert_near(there.objectness, expected.objectness, EXACT)  # of anchors, which do not move
    assert_near(there.proposals, expected.proposals, EXACT)
    assert_near(there.total, expected.total, ROUNDED)


def test_a_segmenter_is_trained_and_scored(tmp_path: Path) -> None:
    data = write_segmented(tmp_path / "data", count=12)
    config = replace(test_segment.EVERYTHING, steps=2, precision="float32", compile=False)
    runs = [
        segment_train(replace(config, device=device), data=data, out=tmp_path / device, quiet=True)
        for device in DEVICES
    ]

    here, there = (read_rows(run.path / "log.jsonl")[0]["loss"] for run in runs)
    assert there == pytest.approx(here, rel=1e-4)
    scored = segment_evaluate(runs[1], data=data, device="cuda", quiet=True)
    assert scored.scores.miou == pytest.approx(runs[1].scores.miou, abs=1e-6)


def test_a_detector_is_trained_and_scored(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data", count=10)
    config = replace(test_detect_train.EVERYTHING, steps=2, precision="float32", compile=False)
    runs = [
        detect_train(replace(config, device=device), data=data, out=tmp_path / device, quiet=True)
        for device in DEVICES
    ]

    here, there = (read_rows(run.path / "log.jsonl")[0]["loss"] for run in runs)
    assert there == pytest.approx(here, rel=ROUNDED)
    scored = detect_evaluate(runs[1], data=data, device="cuda", quiet=True)
    assert scored.scores.boxes.ap == pytest.approx(runs[1].scores.boxes.ap, abs=1e-6)
