"""Segment whole images, or windows of them whose scores are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mae.data.types import Size

Network = Callable[[Tensor], Tensor]
"""Normalised images 1 C H W to logits 1 K H W."""


class Windows(NamedTuple):
    """Windows that cover an image."""

    size: Size
    """Height and width of a window, in pixels; of an image that is smaller, its own."""
    stride: Size
    """Distance between windows, in pixels."""


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows begin along a side; the last one ends with the side.

    Source: mmsegmentation's `slide_inference`.
    """
    if length <= size:
        return [0]
    count = math.ceil((length - size) / stride) + 1
    return [min(place * stride, length - size) for place in range(count)]


@torch.inference_mode()
def segment_logits(network: Network, image: Tensor, *, windows: Windows | None = None) -> Tensor:
    """Return the logits of an image; where windows overlap, the mean of theirs.

    Args:
        network: see `Network`.
        image: 1 C H W, normalised, of any size.
        windows: None: the image whole.

    Returns:
        1 K H W float32.
    """
    if windows is None:
        return network(image).float()
    H, W = image.shape[-2:]
    (h, w), total, count = windows.size, None, image.new_zeros(1, 1, H, W)
    for top in window_starts(H, h, windows.stride[0]):
        for left in window_starts(W, w, windows.stride[1]):
            area = (..., slice(top, top + h), slice(left, left + w))
            logits = network(image[area]).float()
            if total is None:
                total = image.new_zeros(1, logits.shape[1], H, W)
            total[area] += logits
            count[area] += 1
    assert total is not None
    return total / count
