"""Random erasing (Zhong et al. 2020), deterministic in (seed, epoch, id).

As in timm's mode "pixel", one rectangle of 2 to 33 % of the area is filled with N(0, 1) noise after
normalisation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mae.data.sampling.draws import Stream, generator, uniform
from mae.data.types import Integers, Size

_ATTEMPTS = 10
_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_DRAWS = 2 * _ATTEMPTS + 3  # area and ratio of each attempt; whether to erase, top, left


def erase_boxes(
    ids: Integers, *, seed: int, epoch: int, rate: float, size: Size
) -> list[tuple[int, int, int, int] | None]:
    """Choose the rectangle to erase from each image.

    Args:
        ids: B.
        seed: key of the run.
        epoch: pass over the data.
        rate: probability that an image is erased.
        size: height and width.

    Returns:
        B: top, left, height, width; None if nothing is erased or none of ten attempts fits.
    """
    draws = uniform(seed, epoch, ids, stream=Stream.ERASE, count=_DRAWS).astype(np.float64)
    H, W = size
    low, high = (math.log(end) for end in _RATIO)
    area = H * W * (_AREA[0] + draws[:, :_ATTEMPTS] * (_AREA[1] - _AREA[0]))
    aspect = np.exp(low + draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * (high - low))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    boxes: list[tuple[int, int, int, int] | None] = []
    fits = (heights < H) & (widths < W)
    for i, (happens, top, left) in enumerate(draws[:, -3:].tolist()):
        if happens >= rate or not fits[i].any():
            boxes.append(None)
            continue
        first = int(fits[i].argmax())
        h, w = int(heights[i, first]), int(widths[i, first])
        boxes.append((int(top * (H - h + 1)), int(left * (W - w + 1)), h, w))
    return boxes


def erased(images: Tensor, ids: Integers, *, seed: int, epoch: int, rate: float) -> Tensor:
    """Erase a rectangle from some images: B C H W float, normalised, to the same shape.

    See `erase_boxes` for the arguments.
    """
    C, H, W = images.shape[1:]
    images = images.clone()
    boxes = erase_boxes(ids, seed=seed, epoch=epoch, rate=rate, size=(H, W))
    for i, box in enumerate(boxes):
        if box is None:
            continue
        top, left, h, w = box
        own = generator(seed, epoch, int(ids[i]), stream=Stream.ERASE_PIXELS)
        noise = torch.from_numpy(own.standard_normal((C, h, w), dtype=np.float32))
        images[i, :, top : top + h, left : left + w] = noise.to(images.device)
    return images
