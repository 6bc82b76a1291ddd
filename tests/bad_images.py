"""Picture files that nothing can read, of twenty kinds, and odd ones that can be read."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.images import encoded, image, png_bomb, rotated_jpeg, uint16


def npy(array: NDArray[np.generic]) -> bytes:
    """Encode an array as numpy does."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _damaged(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", b"not here")
    return file.getvalue()


def _folder(path: Path) -> None:
    path.mkdir()


PICTURE = image(41, 53)
JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
BOMB = struct.pack(">HH", 65_000, 65_000)

BAD: tuple[tuple[str, str, bytes | Callable[[Path], None]], ...] = (
    ("empty", "jpg", b""),
    ("text", "jpg", b"this was never an image\n" * 9),
    ("page", "png", b"<!doctype html><title>404</title>" * 9),
    ("truncated", "jpg", JPEG[:-300]),
    ("head alone", "jpg", JPEG[:100]),
    ("extraneous", "jpg", JPEG[:-2] + bytes(40) + JPEG[-2:]),
    ("bomb", "jpg", JPEG.replace(struct.pack(">HH", 41, 53), BOMB, 1)),
    ("truncated", "png", PNG[:500]),
    ("bit flipped", "png", _damaged(PNG, len(PNG) // 2)),
    ("bomb", "png", png_bomb(30_000, 30_000)),
    ("truncated", "gif", encoded(PICTURE, "GIF")[:1200]),
    ("truncated", "webp", encoded(PICTURE, "WEBP")[:300]),
    ("truncated", "tif", encoded(PICTURE, "TIFF")[:1200]),
    ("truncated", "bmp", encoded(PICTURE, "BMP")[:1200]),
    ("truncated", "npy", npy(np.asarray(PICTURE))[:-1]),
    ("whole numbers", "npy", npy(np.zeros((41, 53), np.int64))),
    ("archive", "png", _zip()),
    ("dangling", "jpg", lambda path: path.symlink_to("gone.jpg")),
    ("loop", "png", lambda path: path.symlink_to(path.name)),
    ("folder", "jpg", _folder),
)
"""Name, ending, and content or maker."""

MAYBE_SOUND = ("bomb", "whole numbers")
"""Names of those that nothing shows to be damaged: too large, or of another kind."""

ODD: tuple[tuple[str, str, bytes], ...] = (
    ("really a png", "jpg", PNG),
    ("really a jpeg", "tif", JPEG),
    ("cmyk", "jpg", encoded(PICTURE.convert("CMYK"), "JPEG")),
    ("palette", "png", encoded(PICTURE.convert("P"), "PNG")),
    ("one pixel", "png", encoded(image(1, 1), "PNG")),
    ("turned", "jpg", rotated_jpeg(PICTURE, 6)),
    ("exif loop", "jpg", JPEG[:2] + b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"
     b"\x01\0\0\0\x63\0\0\0\x08\0\0\0" + JPEG[2:]),
    ("animated", "gif", encoded(PICTURE.convert("P"), "GIF", save_all=True,
                                append_images=[image(41, 53, seed=1).convert("P")])),
    ("animated", "webp", encoded(PICTURE, "WEBP", save_all=True,
                                 append_images=[image(41, 53, seed=1)])),
    ("pages", "tif", encoded(PICTURE, "TIFF", save_all=True,
                             append_images=[image(41, 53, seed=1)])),
    ("deep", "png", encoded(Image.fromarray(uint16(PICTURE)), "PNG")),
)  # fmt: skip
"""Name, ending, content: read, of several frames or pages the first."""


def write_bad(folder: Path, *, times: int = 1) -> list[str]:
    """Write so many unreadable images of each kind.

    Returns:
        Their names, sorted bytewise.
    """
    names = []
    for number, (name, ending, content) in enumerate(BAD * times):
        path = folder / f"bad {number:03d} {name}.{ending}"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        names.append(path.name)
    return sorted(names, key=os.fsencode)


def write_good(folder: Path, *, count: int) -> None:
    """Write small sound images of three formats."""
    for number in range(count):
        ending = ("jpg", "png", "bmp")[number % 3]
        drawn = image(19 + number % 5, 29 + number % 7, seed=number)
        drawn.save(folder / f"{number:04d}.{ending}")
