"""Images written for each image of a source, below a new folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mae.atomic import write_atomic
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.report.figures import png_bytes


def require_new(folder: Path, *, option: str = "out") -> None:
    """Check before any work that nothing would be overwritten.

    Raises:
        ConfigError: if the folder holds anything, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{option}: {folder} exists already; choose another, or remove it first")


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image atomically, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png_bytes(image))


def names_below(source: Source) -> list[str]:
    """Return the path of each image below the folder that all of them have in common."""
    paths = [os.path.abspath(source.name(i)) for i in range(len(source))]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def output_names(names: Sequence[str]) -> list[str]:
    """Return the path of the PNG of each image below a folder, each once.

    Where two images differ in their extensions alone, the second keeps its own before `.png`.

    Args:
        names: see `names_below`.
    """
    found, taken = list[str](), set[str]()
    for path in names:
        short = os.path.splitext(path)[0]
        while short in taken:
            path, short = f"{path}_", path
        taken.add(short)
        found.append(f"{short}.png")
    return found
