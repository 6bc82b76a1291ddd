"""Contact sheet: named thumbnails of images of any size, dtype and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mae.data.audit.duplicates import reduced

EDGE = 112
"""Longest side of an image on the sheet, in pixels."""
COLUMNS = 8

_GAP, _LINE, _LETTERS = 8, 14, 18  # pixels between cells, height of a name, letters that fit
_HEADING = 28  # height of the heading of a group


def thumbnail(pixels: NDArray[Any], *, edge: int = EDGE) -> Image.Image:
    """Reduce an image H W C to an edge; small images are enlarged by repeating pixels."""
    H, W, _ = pixels.shape
    longest = max(H, W)
    if longest > edge:
        size = max(1, round(H * edge / longest)), max(1, round(W * edge / longest))
        pixels = reduced(pixels, size=size)
    else:
        pixels = pixels.repeat(edge // longest, axis=0).repeat(edge // longest, axis=1)
    return as_rgb(pixels)


def as_rgb(pixels: NDArray[Any]) -> Image.Image:
    """Convert an image H W C to 8-bit RGB.

    The first three of more than three channels are drawn, and the first of two. Values of any
    dtype but uint8 are stretched from their own range to 0 to 255.
    """
    C = pixels.shape[2]
    drawn = pixels[..., [0, 0, 0] if C < 3 else [0, 1, 2]]
    if drawn.dtype != np.uint8:
        low, high = float(drawn.min()), float(drawn.max())
        drawn = ((drawn - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(drawn))


def contact_sheet(
    images: Sequence[tuple[str, Image.Image]], *, columns: int | None = None
) -> Image.Image:
    """Arrange named thumbnails in rows; a name that is too long is cut at its start.

    Args:
        images: names and images made by `thumbnail`, at least one.
        columns: images in a row; none: all of them, at most `COLUMNS`.
    """
    columns = columns or min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    cell = EDGE + _GAP, EDGE + _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + columns * cell[0], _GAP + rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LINE * 0.7)
    for number, (name, image) in enumerate(images):
        row, column = divmod(number, columns)
        left, top = _GAP + column * cell[0], _GAP + row * cell[1]
        offset = (EDGE - image.width) // 2, (EDGE - image.height) // 2
        sheet.paste(image, (left + offset[0], top + offset[1]))
        draw.text((left, top + EDGE), shortened(name, _LETTERS), fill="black", font=font)
    return sheet


def grouped_sheet(
    groups: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]],
) -> Image.Image:
    """Arrange a contact sheet for each group, one below the other, under its heading.

    Args:
        groups: heading and images of each, see `contact_sheet`.
    """
    columns = min(COLUMNS, max(len(images) for _, images in groups))
    sheets = [contact_sheet(images, columns=columns) for _, images in groups]
    height = sum(_HEADING + sheet.height for sheet in sheets)
    whole = Image.new("RGB", (sheets[0].width, height), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(_HEADING * 0.55)
    top = 0
    for (heading, _), sheet in zip(groups, sheets, strict=True):
        draw.text((_GAP, top + _GAP), heading, fill="black", font=font)
        whole.paste(sheet, (0, top + _HEADING))
        top += _HEADING + sheet.height
    return whole


def shortened(name: str, most: int) -> str:
    """Cut a name that is longer than `most` letters at its start."""
    return name if len(name) <= most else "…" + name[1 - most :]
