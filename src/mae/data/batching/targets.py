"""Crops of images together with their masks or objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mae.data.decoding.decode import PixelKind
from mae.data.detection.jitter import JITTER_DRAWS, JitterRule, jittered
from mae.data.detection.source import Instances
from mae.data.sampling.draws import Stream
from mae.data.segmentation.crop import SEGMENT_DRAWS, CropRule, cropped_pairs, read_crops
from mae.data.segmentation.source import Mask
from mae.data.types import Draws, Flags, Integers, Pixels, Size


class Targets(NamedTuple):
    """What is learnt from the crops, besides their pixels."""

    masks: Mask | None = None
    """B h w: class of each pixel, or IGNORE."""
    objects: tuple[Instances, ...] | None = None
    """B: the objects of each crop."""


def crops_with_targets(
    rule: CropRule | JitterRule,
    read: Callable[[int, Callable[..., Any]], tuple[Any, int]],
    ids: Integers,
    draw: Callable[[Stream, int], Draws],
    flips: Flags,
    *,
    kind: PixelKind,
    size: Size,
    room: Pixels | None = None,
) -> tuple[Pixels, Targets, Integers]:
    """Read and crop images with their masks, or with their objects.

    Args:
        rule: how they are cropped: pairs of image and mask, or of image and objects.
        read: see `cropped_pairs`, as the other arguments.
        ids: B.
        draw: draws numbers of a stream for each image.
        flips: B.
        kind: type and channels of the images.
        size: h, w.
        room: B h w C.

    Returns:
        Images B h w C, their targets, and the ids B of the images shown.
    """
    if isinstance(rule, CropRule):
        draws = draw(Stream.SEGMENT, SEGMENT_DRAWS)
        images, masks, shown = cropped_pairs(
            read, ids, draws, flips, kind=kind, size=size, rule=rule, room=room
        )
        return images, Targets(masks=masks), shown
    images = np.empty((len(ids), *size, kind.channels), kind.dtype) if room is None else room
    cut, draws = (
        partial(jittered, kind=kind, size=size, rule=rule),
        draw(Stream.JITTER, JITTER_DRAWS),
    )
    objects, shown = read_crops(read, ids, draws, flips, cut=cut, images=images)
    return images, Targets(objects=tuple(objects)), shown
