"""Masks of COCO annotations: polygons, run lengths and panoptic PNGs."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.annotated import image_paths, images_of
from mae.data.decoding.header import BadImage, pillow_faults
from mae.data.segmentation.source import IGNORE, MOST_CLASSES, Mask
from mae.data.sources.source import FolderSource
from mae.data.types import Size
from mae.errors import DataError

BACKGROUND = "background"
"""Class 0 of instance annotations: pixels of no instance."""

Inside = NDArray[np.bool_]
"""H W: True inside of an instance."""


def polygon_inside(corners: Sequence[float], *, size: Size) -> Inside:
    """Return the pixels whose centre lies inside of a polygon, by the even-odd rule.

    Args:
        corners: x, y of each corner in turn; pixel (row, column) covers column to column + 1 in x.
        size: H, W.
    """
    x, y = np.asarray(corners, dtype=np.float64).reshape(-1, 2).T
    inside = np.zeros(size, dtype=np.bool_)
    if not x.size:
        return inside
    # Around the polygon, with a column more than it can reach by rounding.
    (top, bottom), (left, right) = (
        (int(np.ceil(v.min() - 1.5).clip(0, n)), int(np.ceil(v.max() + 0.5).clip(0, n)))
        for v, n in zip((y, x), size, strict=True)
    )
    toggles = np.zeros((bottom - top, right - left + 1), dtype=np.uint8)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        # Rows whose centre is in [low, high): a corner at a centre counts for one of its two edges.
        rows = np.arange(
            max(top, np.ceil(low - 0.5)), min(bottom, np.ceil(high - 0.5)), dtype=np.int64
        )
        if rows.size:
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.ceil(crossings - 0.5).clip(left, right).astype(np.int64)
            toggles[rows - top, columns - left] += 1
    crossed = toggles.cumsum(axis=1, dtype=np.uint8)[:, :-1]
    inside[top:bottom, left:right] = crossed % 2 == 1
    return inside


def run_lengths(text: str) -> list[int]:
    """Decode the compressed run lengths of COCO: numbers of 5 bits a character, low bits first.

    From the fourth on, a number is stored as the difference from the one before the last.

    Raises:
        ValueError: for text that ends within a number.
    """
    counts, value, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return counts


def run_lengths_of(inside: Inside) -> dict[str, Any]:
    """Return pixels H W as COCO's compressed run lengths, the inverse of `instance_inside`."""
    H, columns = inside.shape[0], np.flatnonzero(inside.any(axis=0))
    first, end = (columns[0], columns[-1] + 1) if columns.size else (0, 0)
    flat = np.pad(inside[:, first:end].T.ravel(), 1)  # column by column
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + H * first
    counts = np.diff(edges, prepend=0, append=inside.size).tolist()
    counts = counts[:-1] if counts[-1] == 0 else counts
    text = []
    for place, count in enumerate(counts):
        value, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return {"size": list(inside.shape), "counts": "".join(text)}


def runs_inside(counts: Sequence[int], *, size: Size) -> Inside:
    """Return the pixels of run lengths: outside and inside in turn, column by column.

    Raises:
        ValueError: if they are not as many pixels as the image has.
    """
    H, W = size
    if min(counts, default=0) < 0 or sum(counts) != H * W:
        raise ValueError(f"run lengths of {sum(counts)} pixels, expected {H} x {W}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(W, H).T


def instance_inside(segmentation: Any, *, size: Size) -> Inside:
    """Return the pixels of an instance: several polygons, or run lengths.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if tuple(segmentation["size"]) != tuple(size):
            raise ValueError(f"run lengths of an image of {segmentation['size']}, expected {size}")
        return runs_inside(run_lengths(counts) if isinstance(counts, str) else counts, size=size)
    inside = np.zeros(size, dtype=np.bool_)
    for corners in segmentation:
        inside |= polygon_inside(corners, size=size)
    return inside


class _Annotated(NamedTuple):
    """Image of a COCO file, with what is known of its pixels."""

    file: str
    size: Size
    instances: tuple[tuple[int, Any], ...] = ()
    """Class and segmentation of each instance, the largest first."""
    png: str = ""
    """Path of the panoptic PNG."""
    classes: tuple[tuple[int, int], ...] = ()
    """Number of each segment of the PNG, and its class."""


class CocoMasks:
    """Masks of the images of a COCO file, drawn when they are read.

    Of instances that overlap, the smaller is on top. Pixels of no instance are background; of no
    panoptic segment, ignored.
    """

    def __init__(self, annotated: Sequence[_Annotated], digest: str) -> None:
        self._annotated, self._digest = tuple(annotated), digest

    def __len__(self) -> int:
        return len(self._annotated)

    def read(self, index: int) -> Mask:
        """Draw a mask; see `Masks`."""
        image = self._annotated[index]
        if image.png:
            return _panoptic_mask(image)
        mask = np.zeros(image.size, dtype=np.uint8)
        for number, segmentation in image.instances:
            try:
                mask[instance_inside(segmentation, size=image.size)] = number
            except (ValueError, TypeError, KeyError) as error:
                raise BadImage(f"an annotation that cannot be drawn ({error})") from error
        return mask

    def fingerprint(self) -> str:
        """Return the digest of the annotations of these images."""
        return self._digest


def _panoptic_mask(image: _Annotated) -> Mask:
    try:
        data = Path(image.png).read_bytes()
    except OSError as error:
        raise BadImage(f"its panoptic PNG cannot be read ({error.strerror})") from error
    with pillow_faults("PNG"), Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
        colours = np.asarray(opened.convert("RGB")).astype(np.uint32)
    numbers = colours @ np.array((1, 256, 65536), dtype=np.uint32)
    mask = np.full(numbers.shape, IGNORE, dtype=np.uint8)
    for number, own in image.classes:
        mask[numbers == number] = own
    return mask


class CocoFile(NamedTuple):
    """A COCO file that is read."""

    classes: tuple[str, ...]
    images: tuple[_Annotated, ...]
    digest: str

    def masks(self, kept: Sequence[int]) -> CocoMasks:
        """Return the masks of some of its images."""
        numbers = ",".join(map(str, kept))
        digest = hashlib.sha256(f"{self.digest} {numbers}".encode()).hexdigest()
        return CocoMasks([self.images[i] for i in kept], digest)

    def paths(self, folders: Sequence[Path]) -> list[str | None]:
        """Return the path of each image, see `image_paths`."""
        return image_paths([image.file for image in self.images], folders)


def read_coco(path: Path) -> CocoFile:
    """Read a file of instance or panoptic annotations.

    Panoptic PNGs are in the folder beside the file that has its name without `.json`.

    Raises:
        DataError: for a file that is neither, or has too many classes.
    """
    try:
        text = path.read_bytes()
        values = json.loads(text)
        categories = sorted(values["categories"], key=lambda each: int(each["id"]))
        annotations = values["annotations"]
        panoptic = any("segments_info" in each for each in annotations)
        names = [str(each["name"]) for each in categories]
        names = names if panoptic else [BACKGROUND, *names]
        first = 0 if panoptic else 1
        numbers = {int(each["id"]): first + i for i, each in enumerate(categories)}
        find = _panoptic if panoptic else _instances
        own = find(annotations, numbers, path.with_suffix(""))
        images = tuple(
            _Annotated(str(each["file_name"]), (int(each["height"]), int(each["width"])), **parts)
            for each in values["images"]
            # An image without instances is background; one without panoptic segments has no mask.
            if (parts := own.get(each["id"], None if panoptic else {})) is not None
        )
    except OSError as error:
        raise DataError(f"data: {path}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"data: {path}: is no COCO file of instances or panoptic segments "
            f"({type(error).__name__}: {error}); expected images, annotations and categories"
        ) from error
    if len(names) > MOST_CLASSES:
        raise DataError(f"data: {path} has {len(names)} classes, expected at most {MOST_CLASSES}")
    return CocoFile(tuple(names), images, hashlib.sha256(text).hexdigest())


def _instances(
    annotations: Sequence[Any], numbers: Mapping[int, int], _: Path
) -> dict[int, dict[str, Any]]:
    """Return the instances of each image that has any, the largest first."""
    found = defaultdict[int, list[tuple[float, int, Any]]](list)
    for each in annotations:
        drawn = float(each.get("area", 0)), numbers[int(each["category_id"])], each["segmentation"]
        found[each["image_id"]].append(drawn)
    return {
        image: {
            "instances": tuple(
                (number, segmentation)
                for _, number, segmentation in sorted(drawn, key=lambda each: -each[0])
            )
        }
        for image, drawn in found.items()
    }


def _panoptic(
    annotations: Sequence[Any], numbers: Mapping[int, int], folder: Path
) -> dict[int, dict[str, Any]]:
    """Return the PNG and the segments of each image."""
    return {
        each["image_id"]: {
            "png": os.path.join(folder, each["file_name"]),
            "classes": tuple(
                (int(s["id"]), numbers[int(s["category_id"])]) for s in each["segments_info"]
            ),
        }
        for each in annotations
    }


def coco_images(file: CocoFile, paths: Sequence[str | None]) -> tuple[FolderSource, CocoMasks]:
    """Return the images of a file that exist, and their masks."""
    kept = [i for i, path in enumerate(paths) if path is not None]
    return images_of([path for path in paths if path is not None]), file.masks(kept)
