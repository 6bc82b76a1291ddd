"""Boxes and masks of objects drawn over images, with labels that do not overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mae.data.detection.source import Instances
from mae.data.segmentation.crop import nearest
from mae.report.examples import class_colours

LETTERS = 16
"""Height of a label, in pixels of an image whose longer side is `DRAWN`."""
DRAWN = 448
_OPACITY = 0.4
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)

Area = tuple[int, int, int, int]
"""Left, top, right, bottom."""


def draw_objects(
    image: Image.Image,
    objects: Instances,
    labels: Sequence[str],
    *,
    classes: int,
    marked: Collection[int] = (),
) -> Image.Image:
    """Draw objects over an image; of labels that would overlap, the first is drawn.

    Args:
        image: RGB, of any size.
        objects: in the pixels of the whole image, the most important first.
        labels: of each object; empty ones are not drawn.
        classes: number of classes, for their colours.
        marked: places of objects with wider lines and black labels.
    """
    colours, unit = class_colours(classes), max(image.size) / DRAWN
    drawn = _with_masks(image, objects, colours)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(round(LETTERS * unit))
    H, W = objects.size
    scale = np.array([image.width / W, image.height / H] * 2)
    boxes = np.rint(objects.boxes * scale).astype(int)
    limit = np.array([image.width - 1, image.height - 1] * 2)
    areas = list[Area](tuple(row) for row in np.clip(boxes, 0, limit).tolist())
    own = [tuple(colours[number].tolist()) for number in objects.classes.tolist()]
    for place in reversed(range(len(areas))):
        width = max(1, round((4 if place in marked else 2) * unit))
        draw.rectangle(areas[place], outline=own[place], width=width)
    taken = list[Area]()
    for place, label in enumerate(labels):
        if not label:
            continue
        size = tuple(round(side + 4 * unit) for side in _text_size(font, label))
        for box in _places(areas[place], size, image.size):
            if not any(_overlap(box, other) for other in taken):
                fill = _BLACK if place in marked else own[place]
                # Dark text where the colour is light.
                light = sum(fill) > 420 or fill[1] > 190
                # The last pixel belongs to a rectangle of Pillow.
                draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=fill)
                at = box[0] + 2 * unit, (box[1] + box[3]) / 2
                draw.text(at, label, fill=_BLACK if light else _WHITE, font=font, anchor="lm")
                taken.append(box)
                break
    return drawn


def _with_masks(image: Image.Image, objects: Instances, colours: NDArray[np.uint8]) -> Image.Image:
    """Mix the colours of the classes into the pixels of the masks."""
    pixels, size = np.array(image), (image.height, image.width)
    scale = np.array([image.width / objects.size[1], image.height / objects.size[0]])
    for place, segmentation in enumerate(objects.segmentations):
        if segmentation is not None:
            inside = nearest(objects.mask(place).astype(np.uint8), size=size) > 0
            # Within the box alone, which may be a small part of a large image.
            left, top = np.floor(objects.boxes[place, :2] * scale).astype(int).tolist()
            right, bottom = np.ceil(objects.boxes[place, 2:] * scale).astype(int).tolist()
            part, own = pixels[top:bottom, left:right], inside[top:bottom, left:right]
            mixed = part[own] * (1 - _OPACITY) + colours[objects.classes[place]] * _OPACITY
            part[own] = np.rint(mixed).astype(np.uint8)
    return Image.fromarray(pixels)


def _text_size(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> tuple[int, int]:
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ag")  # the same height for each label
    return round(right - left), round(bottom - top)


def _places(area: Area, size: Sequence[int], image: tuple[int, int]) -> Iterator[Area]:
    """Yield where the label of a box may be: above it, below it, in it, at its right end."""
    (left, top, right, bottom), (w, h), (W, H) = area, size, image
    for x in (left, right - w):
        x = min(max(0, x), max(0, W - w))
        for y in (top - h, bottom, top, bottom - h):
            if 0 <= y <= H - h:
                yield x, y, x + w, y + h


def _overlap(first: Area, second: Area) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
