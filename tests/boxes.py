"""Folders of images with boxes for tests: bright rectangles on a photograph, in each form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.images import photo

CLASSES = ("roof", "tree", "car")
SIZE = 40, 56  # H W


class Marked(NamedTuple):
    """A rectangle of whole pixels."""

    x0: int
    y0: int
    x1: int
    y1: int
    number: int

    @property
    def corners(self) -> list[int]:
        x0, y0, x1, y1, _ = self
        return [x0, y0, x1, y0, x1, y1, x0, y1]


def marked(seed: int, size: tuple[int, int] = SIZE) -> list[Marked]:
    """Two rectangles, of classes `seed` and `seed + 1`."""
    rng, (H, W) = np.random.default_rng(seed), size
    found = []
    for number in (seed % 3, (seed + 1) % 3):
        y0, x0 = int(rng.integers(0, H // 2)), int(rng.integers(0, W // 2))
        found.append(Marked(x0, y0, x0 + 5 + 6 * number, y0 + 7 + 4 * number, number))
    return found


def drawn(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """The image H W 3 of the rectangles."""
    pixels = photo(*size, seed=seed) // 2
    for x0, y0, x1, y1, number in marked(seed, size):
        pixels[y0:y1, x0:x1] //= 2
        pixels[y0:y1, x0:x1, number] += 120
    return pixels


def coco_of(count: int, *, masks: bool = True, first: int = 0) -> dict[str, Any]:
    """The COCO file of some images; category ids have gaps."""
    annotations = [
        {
            "image_id": 10 * i,
            "category_id": 3 + 4 * each.number,
            "bbox": [each.x0, each.y0, each.x1 - each.x0, each.y1 - each.y0],
            "area": (each.x1 - each.x0) * (each.y1 - each.y0),
            "iscrowd": 0,
            **({"segmentation": [each.corners]} if masks else {}),
        }
        for i in range(first, first + count)
        for each in marked(i)
    ]
    return {
        "images": [
            {"id": 10 * i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
            for i in range(first, first + count)
        ],
        "annotations": [{"id": n, **each} for n, each in enumerate(annotations, start=1)],
        "categories": [{"id": 3 + 4 * n, "name": name} for n, name in enumerate(CLASSES)],
    }


def write_images(folder: Path, count: int, *, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.fromarray(drawn(i)).save(folder / f"{i}.png")


def write_coco(root: Path, *, count: int, masks: bool = True, first: int = 0) -> Path:
    """Write images/ and annotations.json."""
    write_images(root / "images", count, first=first)
    content = json.dumps(coco_of(count, masks=masks, first=first))
    (root / "annotations.json").write_text(content)
    return root


def write_yolo(root: Path, *, count: int, first: int = 0, part: str = "") -> Path:
    """Write images/, labels/ and data.yaml."""
    write_images(root / "images" / part, count, first=first)
    (root / "labels" / part).mkdir(parents=True)
    (H, W), names = SIZE, ", ".join(CLASSES)
    for i in range(first, first + count):
        lines = [
            f"{n} {(x0 + x1) / 2 / W} {(y0 + y1) / 2 / H} {(x1 - x0) / W} {(y1 - y0) / H}"
            for x0, y0, x1, y1, n in marked(i)
        ]
        (root / "labels" / part / f"{i}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(f"train: images\nnc: 3\nnames: [{names}]  # three\n")
    return root


def write_voc(root: Path, *, count: int, images: str = "JPEGImages") -> Path:
    """Write JPEGImages/ and Annotations/, pixels counted from 1."""
    write_images(root / images, count)
    (root / "Annotations").mkdir()
    for i in range(count):
        objects = "".join(
            f"<object><name>{CLASSES[n]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}"
            f"</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1, n in marked(i)
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    return root
