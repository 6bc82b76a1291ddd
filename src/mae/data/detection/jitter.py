"""Large-scale jitter: resize, crop, pad and mirror an image and its objects alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mae.data.augment.crop import resized_crop
from mae.data.decoding.decode import BadImage, PixelKind, decode, ignore_message
from mae.data.detection.source import Boxed, Instances, Segmentation
from mae.data.segmentation.coco import instance_inside, run_lengths_of
from mae.data.segmentation.crop import crop_span, nearest
from mae.data.types import Flags, Log, Pixels, Size

JITTER_DRAWS = 3
"""Uniform draws of a crop: scale, top and left."""
_SMALLEST = 1.0  # pixels; a shorter side of what a crop shows of a box drops the object


class JitterRule(NamedTuple):
    """How images and objects are resized before they are cropped."""

    scale: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor, drawn uniformly; at 1 the image just fits into the crop."""
    fill: tuple[float, ...] = (0.0,)
    """Value of each channel beside a resized image that is smaller than the crop."""


class _Cut(NamedTuple):
    """Part of an image, and where a crop shows it: from its top left corner on."""

    top: int
    left: int
    height: int
    width: int
    size: Size
    """Height and width of the part once resized."""
    flip: bool


def jittered(
    boxed: Boxed,
    draws: Sequence[float],
    *,
    flip: bool,
    kind: PixelKind,
    size: Size,
    rule: JitterRule,
    warn: Log = ignore_message,
) -> tuple[Pixels, Instances]:
    """Decode an image, and cut the same random crop from it and from its objects.

    Where the resized image is smaller than the crop, the right and the bottom are filled. Objects
    of which a crop shows less than a pixel are dropped; the box of an object that is cut is that
    of what is left of its mask, if it has one.

    Args:
        boxed: an image and its objects.
        draws: JITTER_DRAWS, uniform in [0, 1).
        flip: whether the image is mirrored left to right.
        kind: type and channels of the image.
        size: height and width of the crop.
        rule: how they are resized, and what fills the rest.
        warn: see `decode`.

    Returns:
        Image h w C and the objects within it; their `size` is that of the image without the fill.

    Raises:
        BadImage: if the image cannot be read, or has another size than its objects were drawn on.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste", large-scale jittering; as in detectron2's
    `ResizeScale` and `FixedSizeCrop`, with `recompute_boxes`.
    """
    pixels, instances = decoded_boxed(boxed, kind=kind, warn=warn), boxed.instances
    (H, W), (low, high) = instances.size, rule.scale
    factor = (low + draws[0] * (high - low)) * min(size[0] / H, size[1] / W)
    (top, height, h), (left, width, w) = (
        crop_span(whole, wanted, factor, drawn)
        for whole, wanted, drawn in zip((H, W), size, draws[1:], strict=True)
    )
    image = np.empty((*size, kind.channels), dtype=kind.dtype)
    image[...] = np.asarray(rule.fill, dtype=kind.dtype)
    part = resized_crop(pixels, (top, left, height, width), size=(h, w))
    image[:h, :w] = part[:, ::-1] if flip else part
    return image, _cropped(instances, _Cut(top, left, height, width, (h, w), flip))


def decoded_boxed(boxed: Boxed, *, kind: PixelKind, warn: Log = ignore_message) -> Pixels:
    """Decode an image H W C; arguments and errors as in `jittered`."""
    pixels, (H, W) = decode(boxed.image, kind=kind, warn=warn), boxed.instances.size
    if pixels.shape[:2] != (H, W):
        h, w = pixels.shape[:2]
        raise BadImage(f"{h} x {w}, its boxes were drawn on {H} x {W}")
    return pixels


def _cropped(instances: Instances, cut: _Cut) -> Instances:
    """Return the objects as a crop shows them."""
    h, w = cut.size
    scale = np.array([w / cut.width, h / cut.height] * 2)
    moved = (instances.boxes - np.array([cut.left, cut.top] * 2)) * scale
    boxes = moved.clip(0, [w, h, w, h])
    kept, segmentations = list[int](), list[Segmentation]()
    for place, segmentation in enumerate(instances.segmentations):
        if (boxes[place, 2:] - boxes[place, :2]).min() < _SMALLEST:
            continue
        own = None
        if segmentation is not None:
            own = _moved(segmentation, instances.size, cut)
            # The mask is drawn here only if a part of it may be cut off.
            if not np.array_equal(boxes[place], moved[place]):
                inside = instance_inside(own, size=cut.size)
                if not inside.any():
                    continue
                boxes[place] = _within(boxes[place], inside, cut)
        kept.append(place)
        segmentations.append(own)
    shares = _areas(boxes[kept]) / _areas(instances.boxes[kept])
    if cut.flip:
        boxes[:, [0, 2]] = w - boxes[:, [2, 0]]
    return Instances(
        cut.size,
        boxes[kept].astype(np.float32),
        instances.classes[kept],
        instances.crowd[kept],
        instances.areas[kept] * shares,
        tuple(segmentations),
    )


def _areas(boxes: Pixels) -> Pixels:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float64)


def _within(box: Pixels, inside: Flags, cut: _Cut) -> Pixels:
    """Return the part of a box around the pixels of its mask, which may be mirrored."""
    inside = inside[:, ::-1] if cut.flip else inside
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    low = np.maximum(box[:2], (columns[0], rows[0]))
    high = np.minimum(box[2:], (columns[-1] + 1, rows[-1] + 1))
    return np.concatenate([low, high])


def _moved(segmentation: Segmentation, size: Size, cut: _Cut) -> Segmentation:
    """Return polygons or run lengths as a crop shows them."""
    h, w = cut.size
    if isinstance(segmentation, Mapping):
        part = instance_inside(segmentation, size=size)[
            cut.top : cut.top + cut.height, cut.left : cut.left + cut.width
        ]
        inside = nearest(part.astype(np.uint8), size=cut.size) > 0
        return run_lengths_of(inside[:, ::-1] if cut.flip else inside)
    moved = []
    for corners in segmentation:
        x, y = np.asarray(corners, dtype=np.float64).reshape(-1, 2).T
        x, y = (x - cut.left) * (w / cut.width), (y - cut.top) * (h / cut.height)
        moved.append(np.stack([w - x if cut.flip else x, y], axis=1).ravel().tolist())
    return moved
