"""Decode an image file once and cut its random crops."""

from __future__ import annotations

from collections.abc import Sequence

from mae.config.run import AugmentConfig
from mae.data.augment.crop import Box, random_box, resized_crop
from mae.data.decoding.decode import PixelKind, decode, ignore_message, jpeg_head
from mae.data.types import Draws, Flags, Log, Pixels, Size

_SCALES = (8, 4, 2)  # JPEG blocks of 8 x 8 can also be decoded to 1, 2 or 4 pixels per side


def random_crops(
    data: bytes | Pixels,
    draws: Draws,
    flips: Flags,
    *,
    kind: PixelKind,
    size: Size,
    augment: AugmentConfig,
    warn: Log = ignore_message,
) -> list[Pixels]:
    """Decode an image once and cut one crop per row of draws.

    With `scaled_decode`, a JPEG is decoded at the smallest scale at which no crop is upsampled, and
    the boxes are rounded to whole pixels of that scale.

    Args:
        data: an encoded file, or pixels H W or H W C.
        draws: V CROP_DRAWS.
        flips: V, True where the crop is mirrored.
        kind: type and channels of the crops.
        size: height and width of the crops.
        augment: scale and ratio of the crops.
        warn: see `decode`.

    Returns:
        V arrays h w C.
    Raises:
        BadImage: with the reason, if the image cannot be read.
    """

    def boxes_in(height: int, width: int) -> list[Box]:
        return [random_box(height, width, drawn, augment) for drawn in draws.tolist()]

    shrink, whole = 1, None
    if augment.scaled_decode and isinstance(data, bytes) and (head := jpeg_head(data)) is not None:
        whole = head.height, head.width
        # Once rotated, an incomplete block would come first and shift all other pixels.
        divided = whole if head.turned else (0, 0)
        shrink = crop_scale(boxes_in(*whole), size=size, divided=divided)
    pixels = decode(data, kind=kind, shrink=shrink, warn=warn)
    if whole is None or pixels.shape[:2] == whole:  # a few JPEGs decode at full size only
        boxes = boxes_in(pixels.shape[0], pixels.shape[1])
    else:
        boxes = [tuple(side // shrink for side in box) for box in boxes_in(*whole)]
    pairs = zip(boxes, flips.tolist(), strict=True)
    return [resized_crop(pixels, box, size=size, flip=flip) for box, flip in pairs]


def crop_scale(boxes: Sequence[Box], *, size: Size, divided: Size = (0, 0)) -> int:
    """Return the largest factor of 8, 4, 2 and 1 that shrinks no box below `size`.

    Args:
        boxes: of every view.
        size: height and width of the crops.
        divided: sides that the factor must divide.
    """
    room = min(side // wanted for box in boxes for side, wanted in zip(box[2:], size, strict=True))
    fits = (scale for scale in _SCALES if scale <= room and not any(s % scale for s in divided))
    return next(fits, 1)
