"""Check every mask before training, and name in one line what cannot be used."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mae.data.annotated import (
    NO_CLASS,
    Key,
    Problem,
    count_problems,
    look_at_all,
    refuse_other_classes,
)
from mae.data.decoding.decode import PixelKind, decode
from mae.data.decoding.header import BadImage, read_header
from mae.data.segmentation.layout import MaskedPart
from mae.data.segmentation.source import (
    IGNORE,
    MOST_CLASSES,
    FileMasks,
    MappedMasks,
    Mask,
    Masks,
    MaskSource,
    StoredMask,
)
from mae.data.types import Flags, Integers, Pixels, Size
from mae.errors import DataError
from mae.progress import Progress

MOST_ELONGATED = 20
"""Longest image that is used, in lengths of its short side."""


class _Looked(NamedTuple):
    """An image and its mask, both readable and of the same size."""

    counts: Integers
    """256: pixels of each value."""
    palette: bytes | None


_Found = dict[Key, _Looked]
"""By part and image; those with a problem are taken out."""


class _Values(NamedTuple):
    """What the values of the masks of a part mean."""

    known: Flags
    """256."""
    table: Mask
    """256: class by value."""


class CheckedPart(NamedTuple):
    """The images and masks of a part that can be used."""

    ids: Integers
    table: Mask
    """256: class by value."""
    pixels: Integers
    """Pixels of each class in the masks of `ids`."""


class Checked(NamedTuple):
    """What the check found, small enough to be sent to other processes."""

    classes: tuple[str, ...]
    parts: tuple[CheckedPart, ...]
    notes: tuple[str, ...]
    """A line on guesses, and one on what cannot be used."""

    def source(self, part: MaskedPart, number: int = 0) -> MaskSource:
        """Return the images and masks of a part that can be used."""
        masks, own = MappedMasks(part.masks, self.parts[number].table), self.parts[number]
        return MaskSource.of(part.images, masks, self.classes).take(own.ids)


def check(
    parts: Sequence[MaskedPart],
    *,
    max_bad: float,
    progress: Progress,
    classes: Sequence[str] | None = None,
    threads: int = 1,
) -> Checked:
    """Read every mask, and the header of its image.

    Args:
        parts: images and masks; the first has the classes.
        max_bad: largest fraction of the images and masks that may be unusable.
        progress: shows the masks read.
        classes: names of the classes of a segmenter; none: those of the first part.
        threads: masks read at a time.

    Raises:
        DataError: for more unusable ones, with all of them counted by what is wrong; for a single
            class.
    """
    looked, problems, count = look_at_all(
        parts, _look, label="mask checked", progress=progress, threads=threads
    )
    problems += _other_palettes(parts, looked)
    names, notes = _class_names(parts[0], looked) if classes is None else (tuple(classes), [])
    values = [_values_of(part, names) for part in parts]
    problems += _wrong_values(parts, looked, values)
    if problems:
        notes.append(_summary(problems, count, max_bad=max_bad))
    return Checked(
        names,
        tuple(_checked(number, looked, each, len(names)) for number, each in enumerate(values)),
        tuple(notes),
    )


def _checked(number: int, looked: _Found, values: _Values, classes: int) -> CheckedPart:
    own = {i: each for (p, i), each in looked.items() if p == number}
    pixels = np.zeros(256, dtype=np.int64)
    for each in own.values():
        np.add.at(pixels, values.table, each.counts)
    return CheckedPart(np.array(sorted(own), dtype=np.int64), values.table, pixels[:classes])


def _name(parts: Sequence[MaskedPart], key: Key) -> str:
    part, image = parts[key[0]], key[1]
    return part.shown(part.images.name(image))


def _look(parts: Sequence[MaskedPart], key: Key) -> _Looked | Problem:
    """Read a mask and the header of its image."""
    name, part, index = _name(parts, key), parts[key[0]], key[1]
    try:
        data = part.images.read(index)
        H, W = _stored_size(data)
    except BadImage as error:
        return Problem("unreadable image", name, str(error))
    try:
        stored = _stored_mask(part.masks, index)
    except BadImage as error:
        return Problem("unusable mask", name, str(error))
    h, w = stored.values.shape
    if (h, w) == (W, H) != (H, W):
        # Perhaps an image that is stored turned, as its EXIF orientation says.
        H, W = decode(data, kind=PixelKind("uint8", 3)).shape[:2]
    if (h, w) != (H, W):
        return Problem("mask of another size", name, f"{h} x {w}, its image {H} x {W}")
    if max(H, W) > MOST_ELONGATED * min(H, W):
        return Problem(f"image longer than {MOST_ELONGATED} to 1", name, f"{H} x {W}")
    counts = np.bincount(stored.values.ravel(), minlength=256)
    return _Looked(counts, stored.palette)


def _stored_size(data: bytes | Pixels) -> Size:
    if isinstance(data, bytes):
        return read_header(io.BytesIO(data)).size
    return data.shape[0], data.shape[1]


def _stored_mask(masks: Masks, index: int) -> StoredMask:
    if isinstance(masks, FileMasks):
        return masks.stored(index)
    return StoredMask(masks.read(index), None)


def _other_palettes(parts: Sequence[MaskedPart], looked: _Found) -> Iterator[Problem]:
    """Leave out the masks whose values have other colours than in most of them.

    A palette may be cut after the last value that its mask has.
    """
    palettes = Counter(each.palette for each in looked.values())
    if len(palettes) < 2:
        return
    votes = {one: sum(n for other, n in palettes.items() if _agree(one, other)) for one in palettes}
    usual = max(palettes, key=lambda one: (votes[one], palettes[one]))
    for key in [key for key, each in looked.items() if not _agree(each.palette, usual)]:
        detail = "" if looked[key].palette else "grey"
        yield Problem("mask of another palette", _name(parts, key), detail)
        del looked[key]


def _agree(one: bytes | None, other: bytes | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.startswith(other) or other.startswith(one)


def _class_names(part: MaskedPart, looked: _Found) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes of the first part, and a note if they are guessed.

    Raises:
        DataError: if there are fewer than two, or too many.
    """
    given, notes = part.classes, list[str]()
    if given is None:
        used = np.flatnonzero(sum(each.counts for each in looked.values()))
        classes = int(used[used != IGNORE].max(initial=-1)) + 1 if looked else 0
        given = tuple(f"class {value}" for value in range(classes))
        notes = [
            f"guess: no classes.txt, so {classes} classes, values 0 to {classes - 1} of the masks; "
            f"{IGNORE} is ignored"
        ]
    names = tuple(name for name in given if name != NO_CLASS)
    if looked and not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"data: the masks have {len(names)} classes beside {IGNORE}, which is ignored; "
            f"expected 2 to {MOST_CLASSES}, as in 0 for the background and 1 for the object"
        )
    return names, notes


def _values_of(part: MaskedPart, classes: tuple[str, ...]) -> _Values:
    """Map the values of the masks of a part to the classes.

    Raises:
        DataError: if the part has other classes.
    """
    given = classes if part.classes is None else part.classes
    refuse_other_classes({*given}, classes, part=part.name)
    known, table = np.zeros(256, dtype=np.bool_), np.full(256, IGNORE, dtype=np.uint8)
    known[: len(given)] = known[IGNORE] = True
    for value, name in enumerate(given):
        table[value] = IGNORE if name == NO_CLASS else classes.index(name)
    return _Values(known, table)


def _wrong_values(
    parts: Sequence[MaskedPart], looked: _Found, values: Sequence[_Values]
) -> Iterator[Problem]:
    """Leave out the masks with values of no class, and those of ignored pixels alone."""
    for key, each in [*looked.items()]:
        known, table = values[key[0]]
        beyond = np.flatnonzero(each.counts[~known])
        if beyond.size:
            detail = f"{np.flatnonzero(~known)[beyond[0]]}"
            yield Problem("mask with a value of no class", _name(parts, key), detail)
        elif not each.counts[table != IGNORE].any():
            yield Problem("mask with every pixel ignored", _name(parts, key))
        else:
            continue
        del looked[key]


def _summary(problems: Sequence[Problem], count: int, *, max_bad: float) -> str:
    """Count the problems by kind in one line, and name the first of each.

    Raises:
        DataError: the same line, if there are too many.
    """
    counted = count_problems(problems)
    line = f"masks: {len(problems):,} of {count:,} cannot be used: {counted}"
    if len(problems) > max_bad * count or len(problems) == count:
        raise DataError(f"{line}; more than {max_bad:.0%}: mend them, or raise --max-bad")
    return f"{line}; left out"
