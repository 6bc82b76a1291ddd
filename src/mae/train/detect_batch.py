"""What a training step of detection is made of: jitter, draws and loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mae.config.detect import DetectConfig
from mae.data.batching.batch import Batch
from mae.data.detection.jitter import JitterRule
from mae.data.detection.source import Instances
from mae.data.types import Size
from mae.train.segment_batch import mean_color
from mae.train.step import Loss
from mae.transfer.detector import Target

_SEEDS = 2**24  # what a uniform float32 in [0, 1) tells apart


def jitter_rule(config: DetectConfig) -> JitterRule:
    """Return how the images and objects of a run are resized; the fill is the mean colour."""
    return JitterRule(scale=config.scale_range, fill=mean_color(config.model.pixels))


def num_draws(config: DetectConfig) -> int:
    """Return the uniform numbers of an image: of its branches, if any are dropped, and a seed.

    The seed is that of the boxes which its losses are computed of, so that these depend on seed,
    epoch and image alone.
    """
    return 1 + (2 * config.model.depth if config.drop_path else 0)


def detect_loss(config: DetectConfig) -> Loss:
    """Return the loss of a batch of stored pixels and objects."""
    return partial(_loss, masks=bool(config.masks))


def _loss(model: nn.Module, batch: Batch, *, masks: bool) -> Tensor:
    assert batch.objects is not None and batch.drops is not None
    images = model.encoder.normalize(batch.images)  # type: ignore[operator, union-attr]
    H, W = images.shape[-2:]
    drops, seeds = batch.drops[:, :-1], (batch.drops[:, -1] * _SEEDS).long().tolist()
    losses = model(
        images,
        [target_of(each, (H, W), masks=masks, device=images.device) for each in batch.objects],
        sizes=[each.size for each in batch.objects],
        drops=drops if drops.shape[1] else None,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    total: Tensor = losses.total
    return total


def target_of(
    instances: Instances, size: Size, *, masks: bool, device: torch.device | None = None
) -> Target:
    """Return the objects of an image that are learnt: all that have an area, but crowds.

    What is in a crowd counts as background, as in detectron2.

    Args:
        instances: the objects of the image, which is at the top left of its crop.
        size: height and width of the crop.
        masks: whether masks are learnt.
        device: where to put the tensors.
    """
    sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
    places = np.flatnonzero(~instances.crowd & (sides > 0).all(axis=1))
    drawn = None
    if masks:
        drawn = np.zeros((len(places), *size), dtype=np.uint8)
        h, w = instances.size
        for row, place in enumerate(places.tolist()):
            drawn[row, :h, :w] = instances.mask(place)
    found = (instances.boxes[places], instances.classes[places], drawn)
    return Target(*(None if v is None else torch.from_numpy(v).to(device) for v in found))  # type: ignore[arg-type]
