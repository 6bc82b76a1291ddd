"""Batched bicubic resized crops of equal-size uint8 images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae.data.types import Flags, Integers, Pixels, Size

_UNIT = 2**15  # weights are multiples of 1 / _UNIT
# Image values processed at a time: few enough to stay in a core's cache between the two passes, and
# for the allocator to use the heap instead of mapping fresh pages each time.
_AT_A_TIME = 2**17


class Taps(NamedTuple):
    """Source pixels and weights of each output pixel along one axis."""

    places: Tensor
    """B wanted t, int64; places of weight 0 lie in the box as well."""
    weights: Tensor
    """B wanted t, float32 multiples of 2^-15 that sum to one."""

    def some(self, which: slice, device: torch.device) -> Taps:
        """Return the taps of a slice of images, on a device."""
        return Taps(*(value[which].to(device) for value in self))


def resized_crops(images: Pixels, boxes: Integers, *, size: Size, flips: Flags) -> Pixels:
    """Crop a box from each of a batch of equal-size images, resize it and mirror some.

    Each image has its own weights; the horizontal pass comes first. Weights are multiples of
    2^-15 that sum to one and each pass is rounded to uint8, so every partial sum is exact in
    float32 (24 bits) and the result is the same on any machine, device and number of threads.

    Args:
        images: B H W C.
        boxes: B 4: top, left, height, width.
        size: height and width of the results.
        flips: B, True where the result is mirrored left to right.

    Returns:
        B h w C, contiguous, never a view.
    """
    if size == images.shape[1:3] and (boxes == (0, 0, *size)).all():
        flipped = images.copy()
        flipped[flips] = images[flips, :, ::-1]
        return flipped
    given = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return np.asarray(crops_on_device(given, boxes, size=size, flips=flips))


def crops_on_device(images: Tensor, boxes: Integers, *, size: Size, flips: Flags) -> Tensor:
    """Run `resized_crops` on a tensor of any device: B H W C to B h w C on that device."""
    (B, H, W, C), device = images.shape, images.device
    crops = torch.empty(B, *size, C, dtype=torch.uint8, device=device)
    count = max(1, _AT_A_TIME // (max(H, size[0]) * max(W, size[1]) * C))
    before = np.arange(B) % count  # position of each image among those processed at a time
    columns = bicubic_taps(boxes[:, 1] + before * W, boxes[:, 3], wanted=size[1], flips=flips)
    rows = bicubic_taps(boxes[:, 0] + before * H, boxes[:, 2], wanted=size[0])
    for start in range(0, B, count):
        some = slice(start, start + count)
        resized = _resized(images[some], rows.some(some, device), columns.some(some, device))
        crops[some] = resized.short()  # torch converts floats to uint8 three times as slowly
    return crops


def _resized(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Resize images: B h w C float32 in [0, 255], to be truncated to integers."""
    B, H, W, C = images.shape
    h, w = rows.places.shape[1], columns.places.shape[1]
    # The weighted sums run over long contiguous lines, so each pass moves its axis to the front.
    lines = images.view(B, H, W * C).float().transpose(1, 2).reshape(B, W, C * H)
    passed = _pass(lines, columns).floor_()  # B w C*H
    lines = passed.view(B, w * C, H).transpose(1, 2).reshape(B, H, w * C)
    return _pass(lines, rows).view(B, h, w, C)


def _pass(lines: Tensor, taps: Taps) -> Tensor:
    """Compute weighted sums of lines, B stored n to B wanted n; add 0.5 and clamp.

    Truncating the result then rounds half up, as Pillow does. The places of the taps index the
    lines of all B images.
    """
    B, stored, n = lines.shape
    places, weights = (value.flatten(0, 1) for value in taps)
    summed = F.embedding_bag(
        places, lines.reshape(B * stored, n), mode="sum", per_sample_weights=weights
    )
    return summed.add_(0.5).clamp_(0, 255).view(B, -1, n)


def bicubic_taps(
    starts: Integers, lengths: Integers, *, wanted: int, flips: Flags | None = None
) -> Taps:
    """Compute the bicubic taps of each box along one axis, as Pillow does.

    The kernel is cubic convolution with a = -0.5, widened when it downsamples, cut at the ends of
    the box and normalised.

    Args:
        starts: B, first pixel of the box.
        lengths: B, pixels of the box.
        wanted: pixels of the result.
        flips: B, True where the result is reversed.
    """
    distinct, which = np.unique(lengths, return_inverse=True)  # few in a batch of small images
    step = (distinct / wanted)[:, None]  # distinct 1
    stretch = np.maximum(step, 1)
    centres = (np.arange(wanted) + 0.5) * step  # distinct wanted, from the start of the box
    first = np.maximum(np.floor(centres - 2 * stretch + 0.5), 0)
    taps = first[..., None] + np.arange(math.ceil(4 * stretch.max()))  # distinct wanted t
    x = np.minimum(np.abs(taps + 0.5 - centres[..., None]) / stretch[..., None], 2)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = np.where(x < 1, near, far) * (taps < distinct[:, None, None])
    units = np.rint(weights * (_UNIT / weights.sum(axis=-1, keepdims=True)))
    # The pixel under the centre, which has the largest weight, absorbs the rounding error.
    line, place = np.ogrid[: len(distinct), :wanted]
    heaviest = (np.floor(centres) - first).astype(np.int64)
    units[line, place, heaviest] += _UNIT - units.sum(axis=-1)
    inside = np.minimum(taps, distinct[:, None, None] - 1).astype(np.int64)
    weights = (units / _UNIT).astype(np.float32)
    if flips is not None:
        inside, weights = (np.concatenate([v, v[:, ::-1]]) for v in (inside, weights))
        which = which + flips * len(distinct)
    places = inside[which]
    places += starts[:, None, None]
    return Taps(torch.from_numpy(places), torch.from_numpy(weights[which]))
