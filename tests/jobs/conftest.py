"""Small weights and small labelled folders for the jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.images import photo
from tests.model.tiny import tiny_config

TINY = tiny_config(patch_size=8)  # images of 24 x 40, C=3


def write_classes(root: Path, *names: str, count: int, seed: int = 0) -> Path:
    """Write a folder per class, whose images differ by a shade of the class."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = photo(30, 44, seed=seed + 100 * number + i).astype(int)
            pixels[..., number % 3] += 80
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root
