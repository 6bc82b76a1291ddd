"""Configuration of detection: there and back, told apart, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.config.kinds import config_type
from mae.config.run import AugmentConfig, FinetuneConfig, OptimConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.config.serialize import from_dict, to_dict
from mae.errors import ConfigError


def test_it_survives_plain_values() -> None:
    config = DetectConfig(
        num_classes=1,
        masks=True,
        dense=DenseConfig(window=14, global_blocks=(2, 5), relative_positions="decomposed"),
        optim=OptimConfig(decay="steps", milestones=(0.5, 0.75), decay_biases=True),
    )

    assert from_dict(DetectConfig, to_dict(config), where="run.json") == config


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, SegmentConfig, DetectConfig])
def test_a_record_says_of_which_kind_its_run_is(kind: type) -> None:
    assert config_type(to_dict(kind())) is kind


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"pyramid_channels": 0}, "pyramid_channels: expected at least 1, got 0"),
        ({"scale_range": (2.0, 0.1)}, r"scale_range: expected 0 < low <= high, got \(2.0, 0.1\)"),
        ({"augment": AugmentConfig()}, "augment: expected flip alone; use scale_range, got "),
        ({"train_blocks": 13}, "train_blocks: expected 0.5 .* from 0 to 12, got 13"),
        (
            {"dense": DenseConfig(window=7, global_blocks=(5, 12))},
            r"dense.global_blocks: expected 0 to 11, got \(5, 12\)",
        ),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"decay": "steps"},
        {"milestones": (0.5,)},
        {"decay": "steps", "milestones": (0.9, 0.5)},
        {"decay": "steps", "milestones": (0.5, 0.5)},
    ],
)
def test_milestones_ascend_and_are_of_decay_steps(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim.milestones: expected fractions in ascending"):
        OptimConfig(**fields)
