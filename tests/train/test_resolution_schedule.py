"""Runs whose images grow: smaller ones first, then those of the network."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae.config.objective import ObjectiveConfig
from mae.config.run import PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError, Stopped
from mae.jobs.pretrain import pretrain
from mae.model.costs import step_flops
from mae.planning.estimate import Estimate
from mae.planning.hardware import this_machine
from mae.train import saver as running
from mae.train.resolution_schedule import staged_batches, stages
from mae.train.resolve import batch_plan
from mae.weights.load import load
from tests.model.tiny import tiny_config

GROWING = PretrainConfig(
    model=tiny_config(grid=(3, 5)),
    objective=ObjectiveConfig(mask_ratio=0.6),
    batch=4,
    steps=10,
    start_size=(8, 12),  # of patches of 4: 2 x 3
    start_share=0.5,
    device="cpu",
    workers=0,
)


@pytest.fixture
def images() -> ArraySource:
    return ArraySource(np.random.default_rng(0).integers(0, 256, (13, 20, 24, 3), dtype=np.uint8))


def test_the_first_part_has_smaller_images_of_the_same_draws(images: ArraySource) -> None:
    plan = batch_plan(GROWING, images, PixelKind("uint8", 3))

    made = list(staged_batches(GROWING, plan, start=0, num_steps=10, workers=0))

    assert [b.images.shape[2:] for b in made] == [(8, 12)] * 5 + [GROWING.model.image_size] * 5
    assert [b.noise.shape[1] for b in made] == [6] * 5 + [15] * 5
    for number, batch in enumerate(made):
        whole = training_batch(plan, number)
        assert torch.equal(batch.ids, whole.ids)
        assert torch.equal(batch.noise, whole.noise[:, : batch.noise.shape[1]])


@pytest.mark.parametrize("start", [0, 3, 5, 8, 10])
def test_a_resume_begins_with_the_batch_that_would_have_come(
    images: ArraySource, start: int
) -> None:
    plan = batch_plan(GROWING, images, PixelKind("uint8", 3))
    whole = list(staged_batches(GROWING, plan, start=0, num_steps=10, workers=0))

    rest = list(staged_batches(GROWING, plan, start=start, num_steps=10, workers=0))

    assert len(rest) == 10 - start
    for ours, expected in zip(rest, whole[start:], strict=True):
        assert torch.equal(ours.images, expected.images)


@pytest.mark.parametrize("stop_at", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_stopped_in_either_part_ends_at_the_same_bits(
    images: ArraySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config = dataclasses.replace(GROWING, save_every_steps=stop_at)
    whole = pretrain(config, data=images, out=tmp_path / "whole", quiet=True).model
    save = running.save_checkpoint

    def save_and_be_stopped(*args: Any, **more: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*args, **more)

    monkeypatch.setattr(running, "save_checkpoint", save_and_be_stopped)
    with pytest.raises(Stopped, match=f"step {stop_at} of 10"):
        pretrain(config, data=images, out=tmp_path / "stopped", quiet=True)
    monkeypatch.undo()
    run = pretrain(config, data=images, out=tmp_path / "stopped", quiet=True)

    assert run.resumed
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
    assert load(tmp_path / "stopped").config.image_size == GROWING.model.image_size


@pytest.mark.parametrize(("size", "share"), [((8, 10), 0.5), ((24, 12), 0.5), ((8, 12), 1.0)])
def test_a_size_that_does_not_fit_is_one_line(size: tuple[int, int], share: float) -> None:
    with pytest.raises(ConfigError, match="start_s"):
        dataclasses.replace(GROWING, start_size=size, start_share=share)


def test_other_runs_have_one_part(images: ArraySource) -> None:
    config = dataclasses.replace(GROWING, start_size=None)
    plan = batch_plan(config, images, PixelKind("uint8", 3))

    (only,) = stages(config, plan)

    assert only == (plan, 1.0)


def test_the_plan_counts_both_parts() -> None:
    small = dataclasses.replace(GROWING.model, image_size=(8, 12))
    estimate = Estimate(GROWING, this_machine("cpu"), 100, parameters=1, frozen=1)

    assert estimate.flops_per_image == round(
        sum(step_flops(m, GROWING.objective) for m in (small, GROWING.model)) / 2
    )
