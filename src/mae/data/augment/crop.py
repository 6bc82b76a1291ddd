"""Crop boxes and bicubic resized crops as pure functions of given draws.

Every crop equals Pillow's `crop(box).resize(size, BICUBIC)`, horizontal pass first, to 50 dB or
better. This module crops one image of any size and type with torch's antialiased bicubic kernel,
which supports uint8; `batched_crop` crops a batch of equal-size uint8 images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from mae.config.model import published_crop_pct
from mae.config.run import AugmentConfig
from mae.data.types import Integers, Pixels, Size

Box = Sequence[int] | Integers
"""Top, left, height and width in pixels, inside the image."""

_ATTEMPTS = 10
_BICUBIC = Image.Resampling.BICUBIC
_MOST_WASTE = 4  # resized pixels per pixel kept; photographs have 1.3 to 2.5
CROP_DRAWS = 2 * _ATTEMPTS + 2
"""Uniform draws per crop: area and ratio of each attempt, then top and left."""


def crop_boxes(
    heights: Integers, widths: Integers, draws: NDArray[np.floating], augment: AugmentConfig
) -> Integers:
    """Choose a random crop of each image; the boxes are bit-identical to those of `random_box`.

    Args:
        heights: B, pixels.
        widths: B, pixels.
        draws: B CROP_DRAWS, uniform in [0, 1).
        augment: area and ratio of the crops.

    Returns:
        B 4: top, left, height, width.
    """
    scale = augment.crop_scale
    if scale == (1, 1):
        return np.stack([np.zeros_like(heights)] * 2 + [heights, widths], axis=1)
    boxes = np.empty((len(draws), 4), dtype=np.int64)
    low, high = map(math.log, augment.crop_ratio)
    rest = np.arange(len(draws))  # indices without a box yet
    for attempt in range(_ATTEMPTS):
        H, W, drawn = heights[rest], widths[rest], draws[rest].astype(np.float64)
        area = H * W * (scale[0] + drawn[:, attempt] * (scale[1] - scale[0]))
        exponent = low + drawn[:, _ATTEMPTS + attempt] * (high - low)
        aspect = np.array([math.exp(x) for x in exponent.tolist()])  # np.exp differs in a bit
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        if augment.crop_clip:
            w, h = np.clip(w, 1, W), np.clip(h, 1, H)
        fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)
        top, left = drawn[:, -2] * (H - h + 1), drawn[:, -1] * (W - w + 1)
        boxes[rest[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        rest = rest[~fits]
        if not rest.size:
            break
    for place in rest.tolist():
        sides = int(heights[place]), int(widths[place])
        boxes[place] = random_box(*sides, draws[place].tolist(), augment)
    return boxes


def random_box(
    height: int, width: int, draws: Sequence[float], augment: AugmentConfig
) -> tuple[int, int, int, int]:
    """Choose a random crop, as torchvision's RandomResizedCrop does.

    Ten attempts draw an area and an aspect ratio (uniform in its logarithm); the first that fits
    is placed at random. If none fits, the largest centred crop of an allowed ratio is used. A
    scale of (1, 1) keeps the whole image, whatever its shape.

    It uses plain numbers instead of arrays: photographs are cropped one at a time, and numpy
    takes ten times as long for one (measured).

    Args:
        height: pixels.
        width: pixels.
        draws: CROP_DRAWS, uniform in [0, 1).
        augment: area and ratio of the crops. With `crop_clip`, the first draw is clipped to the
            sides of the image, as in the published linear probe (util/crop.py), which makes larger
            crops: 52.0 % of the area on average instead of 43.5 %, for a 375 x 500 image and a
            scale of 0.08 to 1.

    Returns:
        Top, left, height, width.
    """
    scale, ratio = augment.crop_scale, augment.crop_ratio
    if scale == (1, 1):
        return 0, 0, height, width
    low, high = map(math.log, augment.crop_ratio)
    for attempt in range(_ATTEMPTS):
        area = height * width * (scale[0] + draws[attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[_ATTEMPTS + attempt] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if augment.crop_clip:
            w, h = min(max(w, 1), width), min(max(h, 1), height)
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1]))) if width / height > ratio[1] else width
    h = min(height, max(1, round(width / ratio[0]))) if width / height < ratio[0] else height
    return (height - h) // 2, (width - w) // 2, h, w


def central_pixels_box(height: int, width: int, *, size: Size) -> tuple[int, int, int, int]:
    """Choose the centre of an image without resizing it, for images that are already cropped.

    If an image is smaller than `size`, its largest centred box of that shape is chosen instead.

    Args:
        height: pixels.
        width: pixels.
        size: height and width of the result.

    Returns:
        Top, left, height, width.
    """
    unit = min(1.0, height / size[0], width / size[1])
    h, w = max(1, round(unit * size[0])), max(1, round(unit * size[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def evaluation_view(image: Pixels, *, size: Size, crop_pct: float | None = None) -> Pixels:
    """Resize the short side of an image, then crop the centre.

    Equal to torchvision's `Resize(int(edge / crop_pct), BICUBIC)` and `CenterCrop(edge)` on a
    Pillow image to 60 dB or better (69 to 80 dB on photographs, no value more than 2 apart).
    If `size` is not square, the image is resized just enough for both sides to cover
    `int(side / crop_pct)`. A smaller image is enlarged.

    Args:
        image: H W C; uint8, uint16 or float32.
        size: height and width of the result.
        crop_pct: fraction of each resized side that is kept; None: as published for `size`.

    Returns:
        h w C of the same type, contiguous, never a view.
    """
    (H, W), (h, w) = image.shape[:2], size
    crop_pct = published_crop_pct(size) if crop_pct is None else crop_pct
    resized = _resized_sides(H, W, size=size, crop_pct=crop_pct)
    top, left = (round((whole - kept) / 2.0) for whole, kept in zip(resized, size, strict=True))
    if resized == (H, W):
        return resized_crop(image, (top, left, h, w), size=size)
    if resized[0] * resized[1] > _MOST_WASTE * h * w:
        return _resized_middle(image, (top, left), resized=resized, size=size)
    whole = resized_crop(image, (0, 0, H, W), size=resized)
    return np.ascontiguousarray(whole[top : top + h, left : left + w])


def _resized_sides(height: int, width: int, *, size: Size, crop_pct: float) -> Size:
    """Return height and width of the whole resized image, rounded as torchvision rounds them."""
    h, w = int(size[0] / crop_pct), int(size[1] / crop_pct)
    if h * width >= w * height:  # the height needs the larger factor
        return h, int(h * width / height)
    return int(w * height / width), w


def _resized_middle(image: Pixels, corner: Size, *, resized: Size, size: Size) -> Pixels:
    """Resize only the cropped part of an elongated image, using Pillow's fractional box.

    An image of 1 x 65,535 pixels, resized whole to a height of 256, would have 4.3 billion.
    """
    sides = zip(image.shape[:2], resized, corner, size, strict=True)
    (y, top, bottom), (x, left, right) = (_taken_part(*side) for side in sides)
    w, part, planes = size[1], image[y, x], []
    part = part.astype(np.float32) if part.dtype == np.uint16 else part
    for channel in range(part.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(part[..., channel]))
        # One pass per call, horizontal first: in a single call Pillow chooses the order by cost.
        plane = plane.resize((w, plane.height), _BICUBIC, box=(left, 0, right, plane.height))
        planes.append(np.asarray(plane.resize(size[::-1], _BICUBIC, box=(0, top, w, bottom))))
    middle = np.stack(planes, axis=-1)
    return _as_uint16(middle) if image.dtype == np.uint16 else middle


def _taken_part(stored: int, resized: int, start: int, count: int) -> tuple[slice, float, float]:
    """Return the stored pixels that `count` resized ones depend on, and the box within them."""
    low, high = start * stored / resized, (start + count) * stored / resized
    reach = 2 * max(1.0, stored / resized) + 1  # of the bicubic kernel, plus one
    first, last = max(0, math.floor(low - reach)), min(stored, math.ceil(high + reach))
    return slice(first, last), low - first, high - first


def central_pixels(image: Pixels, *, size: Size) -> Pixels:
    """Crop the centre of an image, see `central_pixels_box`."""
    box = central_pixels_box(*image.shape[:2], size=size)
    return resized_crop(image, box, size=size)


def resized_crop(image: Pixels, box: Box, *, size: Size, flip: bool = False) -> Pixels:
    """Crop a box from an image and resize it; pixels outside the box have no influence.

    Args:
        image: H W C; uint8, uint16 or float32.
        box: top, left, height, width.
        size: height and width of the result.
        flip: whether the result is mirrored left to right.

    Returns:
        h w C of the same type, contiguous, never a view; integers rounded and within their range.
    """
    top, left, height, width = map(int, box)
    crop = image[top : top + height, left : left + width]
    if crop.dtype == np.uint16:
        wide = resized_crop(crop.astype(np.float32), (0, 0, height, width), size=size, flip=flip)
        return _as_uint16(wide)
    if not (crop.flags.c_contiguous and crop.flags.writeable):  # torch requires it
        crop = crop.copy()
    pixels = torch.from_numpy(crop)
    # Add the batch axis first: torch recognises channels-last memory, which it resizes three times
    # and mirrors fifteen times as fast, only if the batch stride spans a whole image.
    planes = pixels[None].permute(0, 3, 1, 2)  # 1 C h w
    if (height, width) != size:
        planes = _resize(planes, size)
    elif not flip:
        planes = planes.clone()
    planes = planes.flip(3) if flip else planes
    return np.ascontiguousarray(planes[0].permute(1, 2, 0).numpy())


def _as_uint16(values: Pixels) -> Pixels:
    rounded: Pixels = np.rint(values).clip(0, 65535).astype(np.uint16)
    return rounded


def _resize(planes: torch.Tensor, size: Size) -> torch.Tensor:
    if planes.dtype == torch.uint8 and planes.shape[1] <= 4:
        return F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    # torch 2.14 garbles other results that are one pixel wide in channels-last memory.
    apart = planes.contiguous().transpose(0, 1)
    return F.interpolate(apart, size=size, mode="bicubic", antialias=True).transpose(0, 1)
