"""Batch-wise mixup, CutMix and label smoothing as pure functions of (seed, step).

As in timm's batch mode, a batch has one fraction and one box, each image is mixed with its partner
in the reversed batch, and the fraction is corrected for the clipped box. A batch is mixed before
it is split, so the result does not depend on micro-batches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mae.config.run import MixConfig
from mae.data.sampling.draws import Stream, generator, uniform
from mae.data.types import Size


class Mixing(NamedTuple):
    """How a batch is mixed."""

    fraction: float
    """Fraction kept of each image and of its label; 1: nothing is mixed."""
    box: tuple[int, int, int, int] | None
    """Top, bottom, left, right of the partner's part; None: pixels are averaged."""


def mixing(config: MixConfig, *, seed: int, step: int, size: Size) -> Mixing:
    """Draw how the batch of a step is mixed.

    Args:
        config: probabilities and parameters of the draws.
        seed: key of the run.
        step: number of the batch.
        size: height and width of the images.

    Source: timm's Mixup with mode "batch"; mixup (Zhang et al. 2018), CutMix (Yun et al. 2019).
    """
    draws = uniform(seed, step, np.zeros(1, dtype=np.int64), stream=Stream.MIX, count=4)[0]
    happens, switch, y, x = draws.astype(np.float64).tolist()
    if happens >= config.probability or not (config.mixup or config.cutmix):
        return Mixing(1.0, None)
    cut = bool(config.cutmix) and (not config.mixup or switch < config.switch)
    alpha = config.cutmix if cut else config.mixup
    fraction = float(generator(seed, step, 0, stream=Stream.MIX_SHARE).beta(alpha, alpha))
    return cut_box(fraction, size=size, centre=(y, x)) if cut else Mixing(fraction, None)


def cut_box(fraction: float, *, size: Size, centre: tuple[float, float]) -> Mixing:
    """Compute the box of CutMix and the fraction of the image outside it, after clipping.

    Args:
        fraction: fraction of the image to keep.
        size: height and width.
        centre: of the box, as fractions of height and width; the box is clipped to the image.
    """
    ends = []
    for edge, at in zip(size, centre, strict=True):
        length, middle = int(edge * np.sqrt(1 - fraction)), int(at * edge)
        ends += [max(0, middle - length // 2), min(edge, middle + (length + 1) // 2)]
    top, bottom, left, right = ends
    cut = (bottom - top) * (right - left)
    return Mixing(1 - cut / (size[0] * size[1]), (top, bottom, left, right))


def mixed_images(images: Tensor, how: Mixing) -> Tensor:
    """Mix every image with its partner in the reversed batch: B C H W float to the same."""
    if how.fraction == 1:
        return images
    if how.box is None:
        return images * how.fraction + images.flip(0) * (1 - how.fraction)
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def soft_targets(labels: Tensor, how: Mixing, *, num_classes: int, smoothing: float) -> Tensor:
    """Return class probabilities, smoothed, then mixed: B int64 to B num_classes float32."""
    own = F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    return own * how.fraction + own.flip(0) * (1 - how.fraction)
