"""What a training step of detection is made of: jitter and draws."""

from __future__ import annotations

from mae.config.detect import DetectConfig
from mae.data.detection.jitter import JitterRule
from mae.train.segment_batch import mean_color


def jitter_rule(config: DetectConfig) -> JitterRule:
    """Return how the images and objects of a run are resized; the fill is the mean colour."""
    return JitterRule(scale=config.scale_range, fill=mean_color(config.model.pixels))


def num_draws(config: DetectConfig) -> int:
    """Return the uniform numbers of an image that `Detector.forward` takes; 0: none are dropped."""
    return 2 * config.model.depth if config.drop_path else 0
