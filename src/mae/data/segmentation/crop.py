"""Resize, crop and mirror an image and its mask alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from mae.data.augment.crop import resized_crop
from mae.data.augment.distort import DISTORT_DRAWS, distorted
from mae.data.decoding.decode import BadImage, PixelKind, decode, ignore_message
from mae.data.segmentation.source import IGNORE, Mask, Pair
from mae.data.types import Draws, Flags, Integers, Log, Pixels, Size

Target = TypeVar("Target")

_ATTEMPTS = 10
SEGMENT_DRAWS = 1 + 2 * _ATTEMPTS + DISTORT_DRAWS
"""Uniform draws of a crop: scale, top and left of each attempt, colours."""
LONGEST = 4
"""A resized image is at most this many times as long as its short side would be at that scale, as
with the published 2048 x 512."""


class CropRule(NamedTuple):
    """How images and masks are resized before they are cropped."""

    short_side: int | None = None
    """Short side of an image at scale 1, in pixels; None: as it is stored."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor, drawn uniformly."""
    fill: tuple[float, ...] = (0.0,)
    """Value of each channel where a resized image is smaller than the crop."""
    most_of_class: float = 1.0
    """Fraction of the pixels with a class that one class may have before another place is drawn,
    ten times at most."""
    distort: bool = False
    """Whether the colours are drawn, see `distorted`."""

    def factor(self, size: Size, *, scale: float = 1.0) -> float:
        """Return the factor by which an image of H x W is resized at a scale."""
        if self.short_side is None:
            return scale
        return min(
            scale * self.short_side / min(size), scale * LONGEST * self.short_side / max(size)
        )


def resized_size(size: Size, factor: float) -> Size:
    """Return height and width of a resized image, at least 1."""
    H, W = size
    return max(1, round(H * factor)), max(1, round(W * factor))


def cropped_pair(
    pair: Pair,
    draws: Sequence[float],
    *,
    flip: bool,
    kind: PixelKind,
    size: Size,
    rule: CropRule,
    warn: Log = ignore_message,
) -> tuple[Pixels, Mask]:
    """Decode an image and cut the same random crop from it and from its mask.

    The part of the image that the crop shows is cut and then resized, the mask by nearest pixels.
    Where the resized image is smaller than the crop, the rest is filled, the mask with IGNORE.

    Args:
        pair: image and mask of the same size.
        draws: SEGMENT_DRAWS, uniform in [0, 1).
        flip: whether both are mirrored left to right.
        kind: type and channels of the image.
        size: height and width of the crop.
        rule: how they are resized, and what fills the rest.
        warn: see `decode`.

    Returns:
        Image h w C and mask h w.

    Raises:
        BadImage: if the image cannot be read, or the mask has another size.
    """
    pixels, mask = decoded_pair(pair, kind=kind, warn=warn)
    (H, W), (low, high) = mask.shape, rule.scale
    factor = rule.factor((H, W), scale=low + draws[0] * (high - low))
    for attempt in range(_ATTEMPTS):
        (top, height, h), (left, width, w) = (
            crop_span(whole, wanted, factor, drawn)
            for whole, wanted, drawn in zip((H, W), size, draws[1 + 2 * attempt :], strict=False)
        )
        part = mask[top : top + height, left : left + width]
        if rule.most_of_class == 1 or _is_mixed(part, rule.most_of_class):
            break
    image = np.empty((*size, kind.channels), dtype=kind.dtype)
    image[...] = np.asarray(rule.fill, dtype=kind.dtype)
    crop = resized_crop(pixels, (top, left, height, width), size=(h, w))
    image[:h, :w] = distorted(crop, draws[-DISTORT_DRAWS:]) if rule.distort else crop
    target = np.full(size, IGNORE, dtype=np.uint8)
    target[:h, :w] = nearest(part, size=(h, w))
    if flip:
        image, target = image[:, ::-1], target[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(target)


def cropped_pairs(
    read: Callable[[int, Callable[..., tuple[Pixels, Mask]]], tuple[tuple[Pixels, Mask], int]],
    ids: Integers,
    draws: Draws,
    flips: Flags,
    *,
    kind: PixelKind,
    size: Size,
    rule: CropRule,
    room: Pixels | None = None,
) -> tuple[Pixels, Mask, Integers]:
    """Read and crop images with their masks, one by one.

    Args:
        read: returns what a function makes of an image, or of one in its place, and its id.
        ids: B.
        draws: B SEGMENT_DRAWS, uniform in [0, 1).
        flips: B, True where both are mirrored.
        kind: see `cropped_pair`, as `size` and `rule`.
        size: h, w.
        rule: how they are resized.
        room: B h w C, for the images; None allocates it.

    Returns:
        Images B h w C, masks B h w, and the ids B of the images shown.
    """
    images = np.empty((len(ids), *size, kind.channels), kind.dtype) if room is None else room
    cut = partial(cropped_pair, kind=kind, size=size, rule=rule)
    masks, shown = read_crops(read, ids, draws, flips, cut=cut, images=images)
    return images, np.stack(masks), shown


def read_crops(
    read: Callable[[int, Callable[..., tuple[Pixels, Target]]], tuple[tuple[Pixels, Target], int]],
    ids: Integers,
    draws: Draws,
    flips: Flags,
    *,
    cut: Callable[..., tuple[Pixels, Target]],
    images: Pixels,
) -> tuple[list[Target], Integers]:
    """Read and crop images with their targets, one by one; see `cropped_pairs`.

    Args:
        read: see `cropped_pairs`, as `ids`, `draws` and `flips`.
        ids: B.
        draws: B, as many as `cut` takes.
        flips: B.
        cut: makes a crop and its target of what is stored, by `draws` and `flip`.
        images: B h w C, filled with the crops.

    Returns:
        B targets, and the ids B of the images shown.
    """
    targets, shown = list[Target](), ids.copy()
    for place, index in enumerate(ids.tolist()):
        own = partial(cut, draws=draws[place].tolist(), flip=bool(flips[place]))
        (images[place], target), shown[place] = read(index, own)
        targets.append(target)
    return targets, shown


def decoded_pair(pair: Pair, *, kind: PixelKind, warn: Log = ignore_message) -> tuple[Pixels, Mask]:
    """Decode an image H W C with its mask H W; arguments and errors as in `cropped_pair`."""
    pixels, mask = decode(pair.image, kind=kind, warn=warn), pair.mask
    if pixels.shape[:2] != mask.shape:
        raise BadImage(f"{_sides(pixels.shape)}, its mask {_sides(mask.shape)}")
    return pixels, mask


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _is_mixed(mask: Mask, most: float) -> bool:
    """Return whether there are several classes, and none has `most` of their pixels.

    Source: mmsegmentation's RandomCrop with `cat_max_ratio`.
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < most * counts.sum())


def crop_span(whole: int, wanted: int, factor: float, drawn: float) -> tuple[int, int, int]:
    """Return start and length of a crop along a side, and its length once resized."""
    resized = max(1, round(whole * factor))
    if resized <= wanted:
        return 0, whole, resized
    length = min(whole, max(1, round(wanted / factor)))
    return int(drawn * (whole - length + 1)), length, wanted


def nearest(mask: Mask, *, size: Size) -> Mask:
    """Resize a mask to the class of the pixel under each new pixel's centre."""
    if mask.shape == size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for old, new in zip(mask.shape, size, strict=True)
    )
    resized: Mask = mask[rows[:, None], columns]
    return resized
