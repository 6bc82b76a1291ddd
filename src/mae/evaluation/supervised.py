"""Train a network on few labels alone, from random weights; one setting for every data set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mae.atomic import write_json_atomic
from mae.config.model import ModelConfig
from mae.config.run import FinetuneConfig
from mae.evaluation.features import LabelledImages
from mae.evaluation.few_shot import FEW_SHOT_SCRATCH, finetune_in_memory, predicted_classes
from mae.evaluation.split import Ids, Labels
from mae.evaluation.starts import Columns, Scorer
from mae.model.encoder import Encoder

LEAST_STEPS, PASSES = 150, 60
"""Length of a training, whichever is more, where the time allows it."""
TIMED_STEPS = 4


def supervised_config(model: ModelConfig, *, classes: int, labels: int) -> FinetuneConfig:
    """Return the settings of `FEW_SHOT_SCRATCH` for a network and a number of labels."""
    batch = min(FEW_SHOT_SCRATCH.batch, labels)
    steps = max(LEAST_STEPS, PASSES * labels // batch)
    return replace(FEW_SHOT_SCRATCH, model=model, num_classes=classes, batch=batch, steps=steps)


def affordable_steps(
    network: Encoder, config: FinetuneConfig, *, train: LabelledImages, seconds: float
) -> int:
    """Return the steps of the settings, or as many as some seconds hold; at least one.

    A few steps are measured, and discarded.
    """
    began = time.monotonic()
    finetune_in_memory(network, train=train, config=replace(config, steps=TIMED_STEPS))
    possible = int(seconds * TIMED_STEPS / (time.monotonic() - began))
    assert config.steps is not None
    return max(1, min(config.steps, possible))


class SupervisedClasses(NamedTuple):
    """Classes predicted for the test images."""

    classes: Labels
    seconds: float
    """Of the training."""


def supervised_predictions(
    network: Encoder,
    config: FinetuneConfig,
    *,
    train: LabelledImages,
    test: LabelledImages,
    file: Path,
) -> SupervisedClasses:
    """Train a network from its random weights and classify test images.

    Args:
        network: not changed.
        config: see `supervised_config`.
        train: what it learns from.
        test: images to classify.
        file: .json for the predictions; where it exists, they are taken from it.
    """
    if file.exists():
        kept = json.loads(file.read_bytes())
        return SupervisedClasses(np.array(kept["classes"], dtype=np.int64), kept["seconds"])
    began = time.monotonic()
    model = finetune_in_memory(network, train=train, config=config)
    seconds = time.monotonic() - began
    classes = predicted_classes(model, test)
    write_json_atomic(file, {"classes": classes.tolist(), "seconds": seconds})
    return SupervisedClasses(classes, seconds)


class Supervised(NamedTuple):
    """A supervised start: a network for each draw of labels and each seed."""

    networks: Sequence[Encoder]
    """Random weights of each seed."""
    config: FinetuneConfig
    known: LabelledImages
    """Images of any draw."""
    asked: LabelledImages
    """Test images."""
    draws: tuple[Ids, ...]
    """Rows of `known`."""

    @property
    def trainings(self) -> int:
        """Number of networks."""
        return len(self.draws) * len(self.networks)

    def steps_within(self, seconds: float) -> int:
        """Return the steps of each network that fit into some seconds for all."""
        few, share = self.known.only(self.draws[0]), seconds / self.trainings
        return affordable_steps(self.networks[0], self.config, train=few, seconds=share)

    def predictions(self, folder: Path, *, steps: int) -> Iterator[tuple[int, SupervisedClasses]]:
        """Train every network, or take its predictions; yield them with the draw's number."""
        for draw, ids in enumerate(self.draws):
            for seed, network in enumerate(self.networks):
                yield draw, supervised_predictions(
                    network, replace(self.config, seed=seed, steps=steps),
                    train=self.known.only(ids), test=self.asked,
                    file=folder / f"draw-{draw}-seed-{seed}.json",
                )  # fmt: skip

    def about(self, *, steps: int) -> str:
        """State the settings."""
        optim, batch = self.config.optim, self.config.batch
        return (
            f"Supervised: {steps:,} steps of {batch} labelled images from random weights, AdamW "
            f"at {optim.peak_lr(batch):.2g} at its peak, layer decay {self.config.layer_decay:g}, "
            "whole images flipped at random; one setting for all data, and a network for each draw "
            "and seed."
        )


def supervised_start(
    networks: Sequence[Encoder], images: Sequence[Columns], to: Scorer, *, classes: int
) -> Supervised:
    """Return the supervised start of a comparison.

    Args:
        networks: random encoders, one for each seed.
        images: of the drawn and of the test part, as these networks take them.
        to: draws and labels.
        classes: number of classes.
    """
    known, asked = (
        LabelledImages(torch.from_numpy(part.of(ids)[0]), labels)
        for part, ids, labels in zip(
            images, (to.drawn, to.test), (to.drawn_y, to.test_y), strict=True
        )
    )
    draws = to.sizes[-1].ids
    config = supervised_config(networks[0].config, classes=classes, labels=len(draws[0]))
    return Supervised(networks, config, known, asked, draws)
