"""Boxes of COCO annotations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mae.data.annotated import Problem
from mae.data.decoding.header import printable
from mae.data.detection.source import Annotation, Drawn
from mae.data.types import Size
from mae.errors import DataError


class CocoBoxes:
    """Annotations of some images of a COCO file."""

    def __init__(self, annotations: Sequence[Annotation], digest: str) -> None:
        self._annotations, self._digest = tuple(annotations), digest

    def __len__(self) -> int:
        return len(self._annotations)

    def read(self, index: int, size: Size) -> Annotation:
        """Return an annotation; see `Annotations`."""
        return self._annotations[index]

    def fingerprint(self) -> str:
        """Return the digest of the annotations of these images."""
        return self._digest


class CocoBoxFile(NamedTuple):
    """A COCO file of boxes that is read."""

    categories: dict[int | str, str]
    """Name of each category, ascending by its id."""
    files: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    digest: str
    problems: tuple[Problem, ...]
    """Images that cannot be used."""
    lost: tuple[Problem, ...]
    """Boxes that belong to no image, or are no boxes."""

    def boxes(self, kept: Sequence[int]) -> CocoBoxes:
        """Return the annotations of some of its images."""
        numbers = ",".join(map(str, kept))
        digest = hashlib.sha256(f"{self.digest} {numbers}".encode()).hexdigest()
        return CocoBoxes([self.annotations[i] for i in kept], digest)


def read_coco_boxes(path: Path) -> CocoBoxFile:
    """Read a file of instance annotations.

    Images that share an id are left out, as their boxes cannot be told apart; of a file that is
    listed twice, the first stays.

    Raises:
        DataError: for any other file, or for categories that share an id or a name.
    """
    try:
        text = path.read_bytes()
        values = json.loads(text)
        categories = sorted((int(c["id"]), printable(str(c["name"]))) for c in values["categories"])
        listed = [
            (each["id"], str(each["file_name"]), (int(each["height"]), int(each["width"])))
            for each in values["images"]
        ]
        images, problems = _distinct(listed)
        objects, lost = _objects(values["annotations"], images, {each for each, _, _ in listed})
    except OSError as error:
        raise DataError(f"data: {path}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"data: {path}: is no COCO file of boxes ({type(error).__name__}: {error}); expected "
            "images, annotations and categories"
        ) from error
    for what, found in (("id", [i for i, _ in categories]), ("name", [n for _, n in categories])):
        if twice := [each for each, count in Counter(found).items() if count > 1]:
            raise DataError(f"data: {path} has two categories of {what} {twice[0]}; name each once")
    annotations = tuple(Annotation(tuple(objects[i]), size) for i, (_, size) in images.items())
    return CocoBoxFile(
        {number: name for number, name in categories},
        tuple(file for file, _ in images.values()),
        annotations,
        hashlib.sha256(text).hexdigest(),
        tuple(problems),
        tuple(lost),
    )


def _distinct(
    listed: Sequence[tuple[Any, str, Size]],
) -> tuple[dict[Any, tuple[str, Size]], list[Problem]]:
    """Return file and size by image id, and the images that share an id or a file."""
    ids = Counter(number for number, _, _ in listed)
    images, files, problems = dict[Any, tuple[str, Size]](), set[str](), list[Problem]()
    for number, file, size in listed:
        if ids[number] > 1:
            problems.append(Problem("image whose id is used twice", printable(file), f"{number}"))
        elif file in files:
            problems.append(Problem("image listed twice", printable(file), f"id {number}"))
        else:
            files.add(file)
            images[number] = file, size
    return images, problems


def _objects(
    annotations: Sequence[Any], images: Mapping[Any, tuple[str, Size]], listed: set[Any]
) -> tuple[dict[Any, list[Drawn]], list[Problem]]:
    """Return the objects by image, and the boxes of no image and those that are no boxes."""
    found, lost = defaultdict[Any, list[Drawn]](list), list[Problem]()
    for each in annotations:
        image = each["image_id"]
        if image not in images:
            if image not in listed:
                lost.append(Problem("box of an image that is not listed", f"image id {image}"))
            continue
        try:
            x, y, w, h = map(float, each["bbox"])
        except (KeyError, ValueError, TypeError):
            name = printable(images[image][0])
            lost.append(Problem("box that is not four numbers", name, f"{each.get('bbox')}"))
            continue
        area = each.get("area")
        found[image].append(
            Drawn(
                int(each["category_id"]),
                (x, y, x + w, y + h),
                each.get("segmentation") or None,
                bool(each.get("iscrowd", 0)),
                None if area is None else float(area),
            )
        )
    return found, lost
