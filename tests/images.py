"""Makers of image files for tests: photograph-like pixels, every kind, every fault."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag


def photo(height: int, width: int, *, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a photograph-like image, H W C: gradients, hard edges, texture and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = []
    for _ in range(channels):
        fx, fy, px, py = rng.uniform(0.01, 0.9, 4)
        plane = 128 + 60 * np.sin(fx * x + 6 * px) + 50 * np.cos(fy * y + 6 * py)
        top, left = rng.integers(0, height), rng.integers(0, width)
        plane[top:, left:] -= rng.uniform(-90, 90)
        plane += rng.normal(0, rng.uniform(2, 25), plane.shape)
        planes.append(plane)
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def image(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """Draw a photograph-like RGB image for Pillow."""
    return Image.fromarray(photo(height, width, seed=seed))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Encode an image as Pillow does."""
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def rotated_jpeg(image: Image.Image, orientation: int) -> bytes:
    """Encode a JPEG whose EXIF tag asks the viewer to turn it."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, "JPEG", quality=92, exif=exif)


def png_bomb(height: int, width: int) -> bytes:
    """Encode a black one-channel PNG of any size in a few bytes (a row is made, not an image)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(width + 1))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def uint16(image: Image.Image) -> NDArray[np.uint16]:
    """Spread an image's grey values over 16 bits."""
    return np.asarray(image.convert("L")).astype(np.uint16) * 251 + 13


GOOD: tuple[tuple[str, str, Callable[[Image.Image], bytes]], ...] = (
    ("colour", "jpg", lambda p: encoded(p, "JPEG", quality=90)),
    ("colour", "png", lambda p: encoded(p, "PNG")),
    ("grey", "JPG", lambda p: encoded(p.convert("L"), "JPEG")),
    ("grey", "png", lambda p: encoded(p.convert("L"), "PNG")),
    ("palette", "png", lambda p: encoded(p.convert("P"), "PNG")),
    ("cmyk", "jpg", lambda p: encoded(p.convert("CMYK"), "JPEG")),
    ("rgba", "png", lambda p: encoded(p.convert("RGBA"), "PNG")),
    ("deep", "png", lambda p: encoded(Image.fromarray(uint16(p)), "PNG")),
    ("turned", "jpeg", lambda p: rotated_jpeg(p, 6)),
    ("colour", "webp", lambda p: encoded(p, "WEBP", quality=90)),
    ("colour", "tiff", lambda p: encoded(p, "TIFF")),
    ("deep", "tif", lambda p: encoded(Image.fromarray(uint16(p)), "TIFF")),
    ("colour", "bmp", lambda p: encoded(p, "BMP")),
    ("colour", "gif", lambda p: encoded(p, "GIF")),
    ("bilevel", "png", lambda p: encoded(p.convert("1"), "PNG")),
    ("progressive", "jpg", lambda p: encoded(p, "JPEG", progressive=True)),
)


def _break_empty(path: Path, image: Image.Image) -> None:
    path.write_bytes(b"")


def _break_jpeg(path: Path, image: Image.Image) -> None:
    path.write_bytes(encoded(image, "JPEG")[:-400])


def _break_text(path: Path, image: Image.Image) -> None:
    path.write_text("<html>404 not found</html>\n" * 20)


def _break_bomb(path: Path, image: Image.Image) -> None:
    path.write_bytes(png_bomb(30_000, 30_000))


def _break_png(path: Path, image: Image.Image) -> None:
    path.write_bytes(encoded(image, "PNG")[:500])


def _break_link(path: Path, image: Image.Image) -> None:
    path.symlink_to("gone.jpg")


def _break_folder(path: Path, image: Image.Image) -> None:
    path.mkdir()


BROKEN: tuple[tuple[str, str, Callable[[Path, Image.Image], None]], ...] = (
    ("truncated", "jpg", _break_jpeg),
    ("empty", "jpg", _break_empty),
    ("text", "jpg", _break_text),
    ("bomb", "png", _break_bomb),
    ("truncated", "png", _break_png),
    ("dangling", "jpg", _break_link),
    ("folder", "jpg", _break_folder),
)

FOLDERS = ("", "holiday", "holiday/day one", "été/№ 7")


def mixed_folder(root: Path, *, count: int, broken: int) -> list[str]:
    """Fill a nested folder with `count` images of every kind, `broken` of them unreadable.

    Kinds and ways of being broken take turns, so 16 sound images have every kind (8 of them
    reach the first 16-bit one) and 7 broken ones every fault. The broken ones lie evenly between
    the others.

    Returns:
        Sorted relative names of the broken ones, as `FolderSource.name` gives them.
    """
    places = {(i * count + count // 2) // broken for i in range(broken)}
    names: list[str] = []
    good = 0
    for index in range(count):
        folder = FOLDERS[(index + index // len(FOLDERS)) % len(FOLDERS)]
        (root / folder).mkdir(parents=True, exist_ok=True)
        drawn = image(41 + 7 * (index % 5), 53 + 11 * (index % 3), seed=index)
        if index in places:
            kind, extension, spoil = BROKEN[len(names) % len(BROKEN)]
            name = os.path.join(folder, f"{index:03d} {kind}.{extension}")
            spoil(root / name, drawn)
            names.append(name)
        else:
            kind, extension, encode = GOOD[good % len(GOOD)]
            (root / folder / f"{index:03d} {kind}.{extension}").write_bytes(encode(drawn))
            good += 1
    return sorted(names, key=os.fsencode)
