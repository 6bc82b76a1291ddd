"""Folders of images and masks for tests: rectangles of a class, textured by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.images import photo

CLASSES = ("ground", "roof", "tree")


def segmented(
    height: int, width: int, *, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image H W 3 of a photograph with two bright rectangles, and its mask H W."""
    rng = np.random.default_rng(seed)
    pixels = photo(height, width, seed=seed) // 2
    mask = np.zeros((height, width), dtype=np.uint8)
    for number in (1, 2):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        area = slice(top, top + height // 2), slice(left, left + width // 2)
        mask[area] = number
        pixels[area] //= 2
        pixels[(*area, number)] += 120
    return pixels, mask


def write_segmented(
    root: Path, *, count: int, size: tuple[int, int] = (40, 56), seed: int = 0
) -> Path:
    """Write images/ and masks/ of some images of one size, and classes.txt."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels, mask = segmented(*size, seed=seed + i)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
