"""Images with boxes, and perhaps masks, of objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mae.data.annotated import AnnotatedSource
from mae.data.segmentation.coco import instance_inside, run_lengths
from mae.data.sources.source import Source
from mae.data.types import Flags, Integers, Pixels, Size

Boxes = NDArray[np.float32]
"""N 4: x0 y0 x1 y1 in pixels; pixel (row, column) covers column to column + 1 in x."""
Segmentation = Any
"""Polygons (x, y of each corner in turn), or run lengths, as in COCO; None: not known."""
SMALL, LARGE = 32**2, 96**2
"""Areas in pixels between small, medium and large objects, as COCO has them."""
TOLERANCE = 1.0
"""Pixels by which a box may reach beyond its image, as rounding makes it; it is cut."""
NO_AREA = "box of zero size"
OUTSIDE = "box outside its image"
CUT = "box reaching beyond its image, cut"
UNKNOWN = "box of an unknown class"
NO_MASK = "mask that cannot be drawn"


class Drawn(NamedTuple):
    """An object as a file has it."""

    category: int | str
    """Number or name of its class in the file."""
    box: tuple[float, float, float, float]
    """x0 y0 x1 y1 in pixels, not checked."""
    segmentation: Segmentation = None
    crowd: bool = False
    """Whether it is a group of objects, in which nothing is scored as wrong."""
    area: float | None = None
    """Area in pixels, by which it is scored as small, medium or large; None: that of mask or
    box."""


class Annotation(NamedTuple):
    """What a file says of an image."""

    objects: tuple[Drawn, ...]
    size: Size | None = None
    """Height and width of the image, in pixels."""


class Annotations(Protocol):
    """Annotations in the order of their images; pickled for reader processes."""

    def __len__(self) -> int: ...

    def read(self, index: int, size: Size) -> Annotation:
        """Return the annotation of an image of a size, in pixels.

        Raises:
            BadImage: if it cannot be read.
        """

    def fingerprint(self) -> str:
        """Return a digest that identifies the annotations."""


class Instances(NamedTuple):
    """The N objects of an image, or of a crop of it."""

    size: Size
    """Height and width of the image, in pixels."""
    boxes: Boxes
    """N 4, within the image."""
    classes: Integers
    """N, from 0."""
    crowd: Flags
    """N."""
    areas: NDArray[np.float64]
    """N: areas of the objects, in pixels."""
    segmentations: tuple[Segmentation, ...]
    """N; see `Segmentation`."""

    def masks(self) -> Flags:
        """Draw the masks N H W; of an object without one, its box."""
        masks = np.zeros((len(self.boxes), *self.size), dtype=np.bool_)
        for place, segmentation in enumerate(self.segmentations):
            masks[place] = self.mask(place, segmentation)
        return masks

    def first(self, count: int) -> Instances:
        """Return the first objects."""
        return Instances(
            self.size,
            self.boxes[:count],
            self.classes[:count],
            self.crowd[:count],
            self.areas[:count],
            self.segmentations[:count],
        )

    def mask(self, place: int, segmentation: Segmentation = None) -> Flags:
        """Draw the mask H W of an object."""
        segmentation = segmentation or self.segmentations[place]
        if segmentation is None:
            x0, y0, x1, y1 = self.boxes[place].tolist()
            segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        return instance_inside(segmentation, size=self.size)


def instances_of(
    annotation: Annotation, numbers: Mapping[int | str, int], size: Size
) -> tuple[Instances, list[tuple[str, str]]]:
    """Return the objects that can be used, and what is wrong with the others.

    Boxes are cut at the edge of the image.

    Args:
        annotation: of the image.
        numbers: class of each category.
        size: height and width of the image, in pixels.

    Returns:
        Instances, and kind and detail of each problem.
    """
    H, W = size
    kept, problems = list[tuple[Drawn, tuple[float, ...]]](), list[tuple[str, str]]()
    for each in annotation.objects:
        x0, y0, x1, y1 = each.box
        box = max(0.0, x0), max(0.0, y0), min(float(W), x1), min(float(H), y1)
        fault = _fault(each, numbers, box, size)
        if fault is not None:
            problems.append((fault, f"{each.category}" if fault == UNKNOWN else _shown(each.box)))
            if fault != CUT:
                continue
        kept.append((each, box))
    boxes = np.array([box for _, box in kept], dtype=np.float32).reshape(-1, 4)
    objects = [each for each, _ in kept]
    areas = [_area(each, box, size) for each, box in kept]
    return Instances(
        size,
        boxes,
        np.array([numbers[each.category] for each in objects], dtype=np.int64),
        np.array([each.crowd for each in objects], dtype=np.bool_),
        np.array(areas, dtype=np.float64),
        tuple(each.segmentation for each in objects),
    ), problems


def _fault(
    each: Drawn, numbers: Mapping[int | str, int], box: tuple[float, ...], size: Size
) -> str | None:
    """Return what is wrong with an object, if anything; `box` is cut at the edge of the image."""
    x0, y0, x1, y1 = each.box
    if each.category not in numbers:
        return UNKNOWN
    if not np.isfinite(each.box).all() or x1 <= x0 or y1 <= y0:
        return NO_AREA
    if box[2] <= box[0] or box[3] <= box[1]:
        return OUTSIDE
    if each.segmentation is not None and not _can_be_drawn(each.segmentation, size):
        return NO_MASK
    beyond = max(abs(a - b) for a, b in zip(each.box, box, strict=True))
    return CUT if beyond > TOLERANCE else None


def _can_be_drawn(segmentation: Segmentation, size: Size) -> bool:
    """Whether polygons have corners, and run lengths the pixels of the image."""
    try:
        if isinstance(segmentation, Mapping):
            counts = segmentation["counts"]
            counts = run_lengths(counts) if isinstance(counts, str) else counts
            fits = tuple(segmentation["size"]) == size and sum(counts) == size[0] * size[1]
            return bool(fits and min(counts) >= 0)
        return all(
            len(corners) >= 6 and len(corners) % 2 == 0 and bool(np.isfinite(corners).all())
            for corners in segmentation
        )
    except (ValueError, TypeError, KeyError):
        return False


def _area(each: Drawn, box: tuple[float, ...], size: Size) -> float:
    if each.area is not None:
        return each.area
    if each.segmentation is not None:
        return float(instance_inside(each.segmentation, size=size).sum())
    return (box[2] - box[0]) * (box[3] - box[1])


def _shown(box: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in box)


class Boxed(NamedTuple):
    """An image as it is stored, and its objects."""

    image: bytes | Pixels
    instances: Instances


@dataclass(frozen=True)
class BoxSource(AnnotatedSource):
    """Images and their objects as a source."""

    images: Source
    annotations: Annotations
    numbers: Mapping[int | str, int]
    """Class of each category of the annotations."""
    box_classes: tuple[str, ...]
    """Names of the classes of objects, in the order of their numbers."""
    has_masks: bool
    """Whether every object has a mask."""
    ids: Integers
    """Positions of its images in `images` and `annotations`."""
    sizes: Integers
    """N 2: height and width of each of its images."""
    notes: tuple[str, ...] = ()

    def annotated(self, index: int) -> Boxed:
        """See `AnnotatedSource`."""
        return Boxed(self.read(index), self.instances(index))

    def size(self, index: int) -> Size:
        """Return height and width of an image, in pixels."""
        H, W = self.sizes[index].tolist()
        return H, W

    def instances(self, index: int) -> Instances:
        """Return the objects of an image; errors as in `Annotations.read`."""
        size = self.size(index)
        annotation = self.annotations.read(int(self.ids[index]), size)
        found, _ = instances_of(annotation, self.numbers, size)
        return found if self.has_masks else found._replace(segmentations=(None,) * len(found.boxes))

    def file(self, index: int) -> str:
        """Return the path of an image below its folder, without its extension."""
        return os.path.splitext(self.name(index))[0]

    def take(self, ids: Integers) -> BoxSource:
        """Return the images of `ids`, in order."""
        shared = self.images, self.annotations, self.numbers, self.box_classes, self.has_masks
        return BoxSource(*shared, self.ids[ids], self.sizes[ids])

    def fingerprint(self) -> str:
        """Hash the images, annotations, classes and which of the images these are."""
        numbers = [f"{name}={number}" for name, number in self.numbers.items()]
        parts = [self.images.fingerprint(), self.annotations.fingerprint(), *self.box_classes]
        whole = hashlib.sha256("\0".join([*parts, *numbers, f"{self.has_masks}"]).encode())
        whole.update(self.ids.tobytes() + self.sizes.tobytes())
        return whole.hexdigest()

    def coco(self) -> dict[str, Any]:
        """Return the images and objects in COCO's form, see `coco_of`."""
        found = ((i, self.name(i), self.instances(i)) for i in range(len(self)))
        return coco_of(found, self.box_classes)


def coco_of(images: Iterable[tuple[int, str, Instances]], classes: Sequence[str]) -> dict[str, Any]:
    """Return images and objects in COCO's form: image i is number i + 1, as class k is.

    Args:
        images: position, name and objects of each.
        classes: names.
    """
    listed, boxes = list[dict[str, Any]](), list[dict[str, Any]]()
    for i, name, instances in images:
        H, W = instances.size
        listed.append({"id": i + 1, "file_name": name, "height": H, "width": W})
        boxes += _coco_boxes(instances, i + 1)
    return {
        "images": listed,
        "annotations": [{"id": number, **each} for number, each in enumerate(boxes, start=1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, start=1)],
    }


def _coco_boxes(instances: Instances, image: int) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an image in COCO's form, without their ids."""
    for (x0, y0, x1, y1), number, crowd, area, segmentation in zip(
        instances.boxes.tolist(),
        instances.classes.tolist(),
        instances.crowd.tolist(),
        instances.areas.tolist(),
        instances.segmentations,
        strict=True,
    ):
        own = {} if segmentation is None else {"segmentation": segmentation}
        yield {
            "image_id": image,
            "category_id": number + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd),
            **own,
        }
