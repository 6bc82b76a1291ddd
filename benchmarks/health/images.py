"""Small labelled images for short runs: built in, made by code, or from a folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.batching.batch import evaluation_batch
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.sources.open import open_source
from mae.data.sources.source import ArraySource
from mae.data.survey import survey

EDGE = 32
CLASSES = 8


@cache
def built_in(count: int, *, test: bool = False) -> ArraySource:
    """Take the first of the built-in images: 28 x 28 x 1, uint8, 10 classes."""
    source = fashion_mnist("test" if test else "train")
    assert source.labels is not None
    return ArraySource(
        source.images[:count], labels=source.labels[:count], class_names=source.class_names
    )


@cache
def shapes(count: int, *, seed: int = 0) -> ArraySource:
    """Draw coloured shapes on a gradient, 32 x 32 x 3, uint8; a class is form and layout."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    y, x = np.mgrid[:EDGE, :EDGE] / (EDGE - 1)
    images = np.empty((count, EDGE, EDGE, 3))
    for image, label in zip(images, labels, strict=True):
        base, slope_y, slope_x = rng.uniform(60, 190, 3), *rng.uniform(-50, 50, (2, 3))
        image[:] = base + slope_y * (y[..., None] - 0.5) + slope_x * (x[..., None] - 0.5)
        for _ in range(1 + label // 4):
            top, left = rng.uniform(0.25, 0.75, 2)
            tall, wide = rng.uniform(0.12, 0.3, 2)
            dy, dx = abs(y - top) / tall, abs(x - left) / wide
            inside = (dy**2 + dx**2 < 1, np.maximum(dy, dx) < 0.9, dy + dx < 1.2,
                      (dy < 0.35) | (dx < 0.35))[label % 4]  # fmt: skip
            inside = inside & (np.maximum(dy, dx) < 1.2)
            image[inside] = rng.uniform(0, 255, 3)
    images += rng.normal(0, 4, images.shape)
    return ArraySource(images.clip(0, 255).astype(np.uint8), labels=labels, class_names=_names())


@cache
def textures(count: int, *, size: tuple[int, int] = (EDGE, EDGE), seed: int = 0) -> ArraySource:
    """Draw oriented waves of 2 channels, uint16; a class is direction and wavelength."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    images = np.empty((count, *size, 2))
    for image, label in zip(images, labels, strict=True):
        angle = np.pi * (label % 4) / 4 + rng.normal(0, 0.12)
        wave = (0.55, 0.95)[label // 4] * rng.uniform(0.85, 1.15)
        for c in range(2):
            along = y * np.sin(angle) + x * np.cos(angle)
            image[..., c] = np.sin(wave * (1 + 0.5 * c) * along + rng.uniform(0, 7))
        image *= rng.uniform(4000, 12000)
    images += 30000 + rng.normal(0, 500, images.shape)
    return ArraySource(images.astype(np.uint16), labels=labels, class_names=_names())


@cache
def of_folder(path: Path) -> ArraySource:
    """Read a folder of images, in classes or not, at 32 x 32."""
    source = open_source(path)
    kind = survey(source)
    read = evaluation_batch(source, range(len(source)), kind=kind, size=(EDGE, EDGE))
    pixels = read.images.permute(0, 2, 3, 1).numpy()
    labels = None if source.labels is None else source.labels[read.ids.numpy()]
    return ArraySource(pixels, labels=labels, class_names=source.class_names)


def first(source: ArraySource, count: int) -> NDArray[np.generic]:
    """Take images spread evenly over a source."""
    return source.images[np.linspace(0, len(source) - 1, count).astype(int)]


def _names() -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(CLASSES))
