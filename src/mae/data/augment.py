"""Where a picture is cut and how the cut is resized: pure functions of given draws.

Every crop equals Pillow's `crop(box).resize(size, BICUBIC)`, horizontal pass first, to 50 dB or
better: one picture of any size and type through torch's antialiased bicubic kernel here, which
keeps uint8; a batch of equal-size uint8 pictures in `weighted`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Box = Sequence[int] | NDArray[np.int64]
"""Top, left, height and width in pixels, inside the picture."""

_ATTEMPTS = 10
CROP_DRAWS = 2 * _ATTEMPTS + 2
"""Uniform draws a crop needs: area and ratio of each attempt, then top and left."""


def crop_boxes(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    draws: NDArray[np.floating],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Choose a random crop of each picture, the box of `random_box` bit for bit.

    Args:
        heights: B, pixels.
        widths: B, pixels.
        draws: B CROP_DRAWS, uniform in [0, 1).
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.

    Returns:
        B 4: top, left, height, width.
    """
    if scale == (1, 1):
        return np.stack([np.zeros_like(heights)] * 2 + [heights, widths], axis=1)
    boxes = np.empty((len(draws), 4), dtype=np.int64)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    rest = np.arange(len(draws))  # what has no box yet
    for attempt in range(_ATTEMPTS):
        H, W, drawn = heights[rest], widths[rest], draws[rest].astype(np.float64)
        area = H * W * (scale[0] + drawn[:, attempt] * (scale[1] - scale[0]))
        exponent = low + drawn[:, _ATTEMPTS + attempt] * (high - low)
        aspect = np.array([math.exp(x) for x in exponent.tolist()])  # numpy's differs in a bit
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)
        top, left = drawn[:, -2] * (H - h + 1), drawn[:, -1] * (W - w + 1)
        boxes[rest[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        rest = rest[~fits]
        if not rest.size:
            break
    for place in rest.tolist():
        sides = int(heights[place]), int(widths[place])
        boxes[place] = random_box(*sides, draws[place].tolist(), scale=scale, ratio=ratio)
    return boxes


def random_box(
    height: int,
    width: int,
    draws: Sequence[float],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Choose a random crop, as torchvision's RandomResizedCrop does.

    Ten attempts draw an area and a ratio of the sides (uniform in its logarithm); the first that
    fits is placed at random. Where none fits, the largest centred crop of an allowed ratio is
    taken. A scale of (1, 1) keeps the whole picture, whatever its shape.

    Plain numbers, not arrays: a photograph is read alone, and numpy takes ten times as long for
    one (measured).

    Args:
        height: pixels.
        width: pixels.
        draws: CROP_DRAWS, uniform in [0, 1).
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.

    Returns:
        Top, left, height, width.
    """
    if scale == (1, 1):
        return 0, 0, height, width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        area = height * width * (scale[0] + draws[attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[_ATTEMPTS + attempt] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1]))) if width / height > ratio[1] else width
    h = min(height, max(1, round(width / ratio[0]))) if width / height < ratio[0] else height
    return (height - h) // 2, (width - w) // 2, h, w


def center_crop_box(height: int, width: int, *, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Choose the part of a picture that is evaluated, as published.

    Up to 224 pixels the short side is 256/224 of the size and the centre is cut out; above, the
    largest centred part of the right shape is taken. A picture of exactly the size stays whole.

    Args:
        height: pixels.
        width: pixels.
        size: height and width the part will be resized to.

    Returns:
        Top, left, height, width.
    """
    if (height, width) == size:
        return 0, 0, height, width
    share = 224 / 256 if min(size) <= 224 else 1.0
    unit = share * min(height / size[0], width / size[1])
    h = min(height, max(1, round(unit * size[0])))
    w = min(width, max(1, round(unit * size[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def central_pixels_box(
    height: int, width: int, *, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Choose the centre of a picture, pixel for pixel: what was already cut is not resized again.

    Of a picture smaller than the size, the largest centred part of its shape is enlarged.

    Args:
        height: pixels.
        width: pixels.
        size: height and width the part will have.

    Returns:
        Top, left, height, width.
    """
    unit = min(1.0, height / size[0], width / size[1])
    h, w = max(1, round(unit * size[0])), max(1, round(unit * size[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(
    picture: NDArray[Any], box: Box, *, size: tuple[int, int], flip: bool = False
) -> NDArray[Any]:
    """Cut a box out of a picture and resize it; nothing outside the box is seen.

    Args:
        picture: H W C; uint8, uint16 or float32.
        box: top, left, height, width.
        size: height and width of the result.
        flip: whether the result is mirrored left to right.

    Returns:
        h w C of the same type, contiguous, never a view; integers rounded and within their range.
    """
    top, left, height, width = map(int, box)
    crop = picture[top : top + height, left : left + width]
    if crop.dtype == np.uint16:
        wide = resized_crop(crop.astype(np.float32), (0, 0, height, width), size=size, flip=flip)
        rounded: NDArray[Any] = np.rint(wide).clip(0, 65535).astype(np.uint16)
        return rounded
    if not (crop.flags.c_contiguous and crop.flags.writeable):  # torch takes no other memory
        crop = crop.copy()
    pixels = torch.from_numpy(crop)
    # The axis of the batch comes first of all: torch knows HWC memory, which it resizes three times
    # as fast and mirrors fifteen times, only by a stride of the batch that spans a picture.
    planes = pixels[None].permute(0, 3, 1, 2)  # 1 C h w
    if (height, width) != size:
        planes = _resize(planes, size)
    elif not flip:
        planes = planes.clone()
    planes = planes.flip(3) if flip else planes
    return np.ascontiguousarray(planes[0].permute(1, 2, 0).numpy())


def _resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if planes.dtype == torch.uint8 and planes.shape[1] <= 4:
        return F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    # torch 2.14 garbles other results that are one pixel wide in HWC memory.
    apart = planes.contiguous().transpose(0, 1)
    return F.interpolate(apart, size=size, mode="bicubic", antialias=True).transpose(0, 1)
