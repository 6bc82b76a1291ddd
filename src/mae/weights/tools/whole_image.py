"""Outputs of a detector that can be compared: numbers of fixed shape, before any box is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from mae.transfer.detector import Detector


def whole_image_outputs(model: Detector, images: Tensor) -> dict[str, Tensor]:
    """Return what every head says of each image as a single box.

    Args:
        model: in evaluation mode.
        images: B C H W float, normalised.

    Returns:
        Class scores, box offsets, mask logits, and objectness and offsets of the anchors.
    """
    (H, W), B, heads = images.shape[-2:], len(images), model.roi_heads
    maps = {str(number): each for number, each in enumerate(model.backbone(images))}
    boxes, sizes = [images.new_tensor([[0, 0, W, H]])] * B, [(H, W)] * B
    pooled = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
    found = dict(zip(("scores", "boxes"), heads.box_predictor(pooled), strict=True))
    if model.has_masks:
        features = heads.mask_head(heads.mask_roi_pool(maps, boxes, sizes))
        found["masks"] = heads.mask_predictor(features)
    levels = zip(("objectness", "anchors"), model.rpn.head([*maps.values()]), strict=True)
    return found | {n: torch.cat([level.flatten(1) for level in own], 1) for n, own in levels}
