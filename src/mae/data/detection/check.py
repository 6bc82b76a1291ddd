"""Check every box before training, and name in one line what cannot be used."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from mae.data.annotated import (
    CLASSES,
    NO_CLASS,
    Key,
    Problem,
    count_problems,
    look_at_all,
    refuse_other_classes,
)
from mae.data.decoding.decode import jpeg_head
from mae.data.decoding.header import BadImage, read_header
from mae.data.detection.layout import BoxedPart
from mae.data.detection.source import (
    LARGE,
    SMALL,
    Annotation,
    BoxSource,
    instances_of,
)
from mae.data.types import Integers, Pixels, Size
from mae.errors import DataError
from mae.progress import Progress

SIZES = ("small", "medium", "large")


class _Looked(NamedTuple):
    """An image and its annotation, both readable."""

    size: Size
    annotation: Annotation


class CheckedBoxes(NamedTuple):
    """The images of a part that can be used."""

    ids: Integers
    numbers: dict[int | str, int]
    """Class of each category."""
    sizes: Integers
    """N 2: height and width of each image."""
    counts: Integers
    """K 3: small, medium and large boxes of each class (COCO's areas), crowds left out."""
    empty: int
    """Number of images without boxes."""


class Checked(NamedTuple):
    """What the check found, small enough to be sent to other processes."""

    classes: tuple[str, ...]
    parts: tuple[CheckedBoxes, ...]
    has_masks: bool
    """Whether every object has a mask."""
    short_side: int
    """Median short side of the images, in pixels."""
    notes: tuple[str, ...]
    """Lines on guesses, and one on what cannot be used."""

    def source(self, part: BoxedPart, number: int = 0) -> BoxSource:
        """Return the images and objects of a part that can be used."""
        own = self.parts[number]
        shared = part.images, part.annotations, own.numbers, self.classes, self.has_masks
        return BoxSource(*shared, own.ids, own.sizes)


def check(
    parts: Sequence[BoxedPart],
    *,
    max_bad: float,
    progress: Progress,
    classes: Sequence[str] | None = None,
    threads: int = 1,
) -> Checked:
    """Read every annotation, and the header of its image.

    Args:
        parts: images and boxes; the first has the classes.
        max_bad: largest fraction of the images, and of the boxes, that may be wrong.
        progress: shows the images checked.
        classes: names of the classes of a detector; none: those of the first part.
        threads: images read at a time.

    Raises:
        DataError: for more wrong ones, with all of them counted by what is wrong; for data without
            boxes; for classes that the detector, or the first part, does not have.
    """
    lost = [problem for part in parts for problem in part.lost]
    looked, problems, images = look_at_all(
        parts, _look, label="image checked", progress=progress, threads=threads
    )
    boxes = len(lost) + sum(len(each.annotation.objects) for each in looked.values())
    used = {drawn.category for each in looked.values() for drawn in each.annotation.objects}
    categories = [_categories(part, used) for part in parts]
    notes = [*_guess(parts[0], categories[0])]
    names = tuple(categories[0].values()) if classes is None else tuple(classes)
    for part, own in zip(parts, categories, strict=True):
        refuse_other_classes({*own.values()}, names, part=part.name)
    numbers = [{raw: names.index(name) for raw, name in own.items()} for own in categories]
    checked, without = list[CheckedBoxes](), 0
    for number, part in enumerate(parts):
        mine = {i: each for (p, i), each in looked.items() if p == number}
        one, wrong, missing = _checked(part, mine, numbers[number], len(names))
        checked.append(one)
        lost += wrong
        without += missing
    if problems or lost:
        notes.append(_summary(problems, images, lost, boxes, max_bad=max_bad))
    if not any(each.counts.any() for each in checked):
        raise DataError("data: no boxes that can be used; annotate some images")
    notes += _on_empty(names, checked, without)
    short_side = round(median([min(each.size) for each in looked.values()]))
    return Checked(names, tuple(checked), without == 0, short_side, tuple(notes))


def _look(parts: Sequence[BoxedPart], key: Key) -> _Looked | Problem:
    """Read the size of an image, and its annotation."""
    part, index = parts[key[0]], key[1]
    name = part.shown(part.images.name(index))
    try:
        data = part.images.read(index)
        size = _upright_size(data)
    except BadImage as error:
        return Problem("unreadable image", name, str(error))
    try:
        annotation = part.annotations.read(index, size)
    except BadImage as error:
        return Problem("image with an unusable annotation", name, str(error))
    if annotation.size is not None and annotation.size != size:
        detail = f"{_sides(size)}, stated {_sides(annotation.size)}"
        return Problem("image of another size than stated", name, detail)
    return _Looked(size, annotation)


def _upright_size(data: bytes | Pixels) -> Size:
    """Return height and width as they are decoded: turned as the EXIF orientation says."""
    if not isinstance(data, bytes):
        return data.shape[0], data.shape[1]
    if (head := jpeg_head(data)) is not None:
        return head.height, head.width
    return read_header(io.BytesIO(data)).size


def _sides(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _categories(part: BoxedPart, used: set[int | str]) -> dict[int | str, str]:
    """Return the name of each category; where the files have no names, from all objects."""
    if part.categories is not None:
        return {raw: name for raw, name in part.categories.items() if name != NO_CLASS}
    if any(isinstance(each, str) for each in used):
        return {each: str(each) for each in sorted(used, key=str)}
    return {each: f"class {each}" for each in range(max(map(int, used), default=-1) + 1)}


def _guess(part: BoxedPart, categories: Mapping[int | str, str]) -> Iterator[str]:
    """Yield notes on classes without names, and on numbers with gaps."""
    numbers = [each for each in categories if isinstance(each, int)]
    if part.categories is None and numbers:
        yield f"guess: no names of classes, so {len(numbers)}, class 0 to {numbers[-1]}"
    elif part.categories is None:
        yield f"guess: no {CLASSES}, so {len(categories)} classes, by the names in the files"
    elif numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        yield (
            f"classes: {len(numbers)} category ids with gaps, {numbers[0]} to "
            f"{numbers[-1]}, are numbered 0 to {len(numbers) - 1} in that order"
        )


def _checked(
    part: BoxedPart, own: Mapping[int, _Looked], numbers: dict[int | str, int], classes: int
) -> tuple[CheckedBoxes, list[Problem], int]:
    """Return what can be used of a part, its wrong boxes, and how many boxes have no mask."""
    counts, empty = np.zeros((classes, len(SIZES)), dtype=np.int64), 0
    wrong, without = list[Problem](), 0
    for i, each in own.items():
        found, problems = instances_of(each.annotation, numbers, each.size)
        if problems:
            name = part.shown(part.images.name(i))
            wrong += [Problem(kind, name, detail) for kind, detail in problems]
        ranges = np.searchsorted((SMALL, LARGE), found.areas, side="right")
        np.add.at(counts, (found.classes[~found.crowd], ranges[~found.crowd]), 1)
        empty += len(found.boxes) == 0
        without += sum(segmentation is None for segmentation in found.segmentations)
    ids = np.array(sorted(own), dtype=np.int64)
    sizes = np.array([own[i].size for i in ids.tolist()], dtype=np.int64).reshape(-1, 2)
    return CheckedBoxes(ids, numbers, sizes, counts, empty), wrong, without


def _on_empty(classes: Sequence[str], parts: Sequence[CheckedBoxes], without: int) -> Iterator[str]:
    """Yield notes on images without boxes, classes without boxes, and boxes without masks."""
    if empty := sum(each.empty for each in parts):
        images = sum(len(each.ids) for each in parts)
        yield f"boxes: {empty:,} of {images:,} images have none; they are background"
    counts = parts[0].counts.sum(axis=1)
    if unused := [name for name, count in zip(classes, counts, strict=True) if not count]:
        more = " ..." if len(unused) > 5 else ""
        yield f"classes: no box of {', '.join(unused[:5])}{more} in the training images"
    boxes = sum(int(each.counts.sum()) for each in parts)
    if 0 < without < boxes:
        yield f"guess: {without:,} of {boxes:,} boxes have no mask, so boxes alone are used"


def _summary(
    problems: Sequence[Problem], images: int, lost: Sequence[Problem], boxes: int, *, max_bad: float
) -> str:
    """Count the problems by kind in one line, and name the first of each.

    Raises:
        DataError: the same line, if there are too many.
    """
    counts = f"{len(lost):,} of {boxes:,} boxes and {len(problems):,} of {images:,} images"
    line = f"boxes: {counts} are wrong: {count_problems([*problems, *lost])}"
    if len(problems) > max_bad * images or len(lost) > max_bad * boxes or len(problems) == images:
        raise DataError(f"{line}; more than {max_bad:.0%}: mend them, or raise --max-bad")
    return f"{line}; left out, but for boxes that are cut"
