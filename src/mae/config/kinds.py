"""The kinds of runs, and how the record of a run tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from mae.config.detect import DetectConfig
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.segment import SegmentConfig

AnyRunConfig = PretrainConfig | FinetuneConfig | SegmentConfig | DetectConfig
"""Configuration of a run of any kind."""

ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig, SegmentConfig, DetectConfig)


def config_type(fields: Mapping[str, object]) -> type[AnyRunConfig]:
    """Return the type of the configuration of a run, from its fields in run.json."""
    if "head" in fields:
        return SegmentConfig
    if "pyramid_channels" in fields:
        return DetectConfig
    return FinetuneConfig if "num_classes" in fields else PretrainConfig
