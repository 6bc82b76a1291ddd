"""Train a network on few labels alone, from random weights; one setting for every data set."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.atomic import write_json_atomic
from mae.config.model import ModelConfig
from mae.config.run import FinetuneConfig
from mae.evaluation.features import LabelledImages
from mae.evaluation.few_shot import FEW_SHOT_SCRATCH, finetune_in_memory, predicted_classes
from mae.evaluation.split import Labels
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


class Predicted(NamedTuple):
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
) -> Predicted:
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
        return Predicted(np.array(kept["classes"], dtype=np.int64), kept["seconds"])
    began = time.monotonic()
    model = finetune_in_memory(network, train=train, config=config)
    seconds = time.monotonic() - began
    classes = predicted_classes(model, test)
    write_json_atomic(file, {"classes": classes.tolist(), "seconds": seconds})
    return Predicted(classes, seconds)
