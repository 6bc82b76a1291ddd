"""TIFF of every colour and depth: the pixels that are meant, or a reason; never other pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from mae.data.decoding.header import read_kind
from tests.data.decoding.test_tiff import tiff
from tests.images import photo

RGB = photo(11, 13)
GREY = RGB[..., 0]
DEEP_RGB = RGB.astype(np.uint16) * 251 + 7
DEEP = DEEP_RGB[..., 0]
FOUR = photo(11, 13, channels=4)
CMYK = np.asarray(Image.fromarray(FOUR, "CMYK").convert("RGB"))
PALETTE = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
DEEP_PALETTE = np.random.default_rng(1).integers(0, 65536, (3, 65536), dtype=np.uint16)
ALPHA = {"extrasamples": ["unassalpha"]}
PLANES = {"planarconfig": "separate"}


def planes(pixels: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(pixels, -1, 0)


def ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert by the numbers of JPEG (ITU-T T.871, 7)."""
    y, cb, cr = np.moveaxis(pixels.astype(float), -1, 0)
    red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    return np.stack([red, green, blue], axis=-1).clip(0, 255)


def packed(values: NDArray[Any], bits: int, *, order: str = "<", photometric: int = 1) -> bytes:
    """Write H W [C] of any number of bits, rows padded to bytes, as no library here does."""
    H, W, C = np.atleast_3d(values).shape
    rows = values.reshape(H, W * C)
    places = np.arange(bits)[::-1]
    data = np.packbits((rows[..., None] >> places & 1).reshape(H, -1), axis=1).tobytes()
    tags = [(256, W), (257, H), (258, *[bits] * C), (259, 1), (262, photometric), (273, 8),
            (277, C), (278, H), (279, len(data))]  # fmt: skip
    after, entries, rest = 8 + len(data) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, *numbers in tags:
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            content, rest = struct.pack(f"{order}I", after + len(rest)), rest + content
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + rest


READ: tuple[tuple[str, bytes, NDArray[Any]], ...] = (
    ("min-is-black, 1 bit", tiff(GREY > 99, photometric="minisblack"), (GREY > 99) * np.uint8(255)),
    ("min-is-black, 4 bits", packed(GREY >> 4, 4), (GREY >> 4) * np.uint8(17)),
    ("min-is-black, 8 bits", tiff(GREY, photometric="minisblack"), GREY),
    ("min-is-black, 12 bits", packed(DEEP >> 4, 12),
     np.floor((DEEP >> 4) * (65535 / 4095) + 0.5).astype(np.uint16)),
    ("min-is-black, 16 bits", tiff(DEEP, photometric="minisblack"), DEEP),
    ("min-is-black, 16 bits, Motorola", tiff(DEEP, photometric="minisblack", byteorder=">"), DEEP),
    ("min-is-black, 32 bits", tiff(DEEP.astype(np.uint32)), DEEP),
    ("min-is-black, int8 from 0", tiff((GREY // 2).astype(np.int8)), GREY // 2),
    ("min-is-black, int16 from 0", tiff(GREY.astype(np.int16)), GREY.astype(np.uint16)),
    ("min-is-black, float16", tiff(GREY.astype(np.float16)), GREY.astype(np.float32)),
    ("min-is-black, float32", tiff(GREY.astype(np.float32)), GREY.astype(np.float32)),
    ("min-is-black, 8 bits, alpha", tiff(RGB[..., :2], photometric="minisblack", **ALPHA), GREY),
    ("min-is-black, 16 bits, alpha",
     tiff(DEEP_RGB[..., :2], photometric="minisblack", **ALPHA), DEEP),
    ("min-is-white, 1 bit", tiff(GREY > 99, photometric="miniswhite"),
     (GREY <= 99) * np.uint8(255)),
    ("min-is-white, 8 bits", tiff(GREY, photometric="miniswhite"), 255 - GREY),
    ("min-is-white, 16 bits", tiff(DEEP, photometric="miniswhite"), 65535 - DEEP),
    ("min-is-white, 16 bits, Motorola",
     tiff(DEEP, photometric="miniswhite", byteorder=">"), 65535 - DEEP),
    ("min-is-white, 16 bits, alpha",
     tiff(DEEP_RGB[..., :2], photometric="miniswhite", **ALPHA), 65535 - DEEP),
    ("RGB, 8 bits", tiff(RGB, photometric="rgb"), RGB),
    ("RGB, 8 bits, planes", tiff(planes(RGB), photometric="rgb", **PLANES), RGB),
    ("RGB, 8 bits, planes, deflate",
     tiff(planes(RGB), photometric="rgb", **PLANES, compression="zlib"), RGB),
    ("RGB, 8 bits, alpha", tiff(FOUR, photometric="rgb", **ALPHA), FOUR[..., :3]),
    ("RGB, 8 bits, what it is multiplied by",
     tiff(np.dstack([RGB // 3, np.full_like(GREY, 85)]), photometric="rgb",
          extrasamples=["assocalpha"]), RGB // 3 * 3),
    ("RGB, 16 bits, what it is multiplied by",
     tiff(np.dstack([DEEP_RGB // 3, np.full_like(DEEP, 21845)]), photometric="rgb",
          extrasamples=["assocalpha"]), DEEP_RGB // 3 * 3),
    ("RGB, 16 bits", tiff(DEEP_RGB, photometric="rgb"), DEEP_RGB),
    ("RGB, 16 bits, planes", tiff(planes(DEEP_RGB), photometric="rgb", **PLANES), DEEP_RGB),
    ("RGB, int8 from 0", tiff((RGB // 2).astype(np.int8), photometric="rgb"), RGB // 2),
    ("RGB, float16", tiff(RGB.astype(np.float16), photometric="rgb"), RGB.astype(np.float32)),
    ("RGB, float32", tiff(RGB.astype(np.float32), photometric="rgb"), RGB.astype(np.float32)),
    ("palette, 8 bits", tiff(GREY, photometric="palette", colormap=PALETTE),
     (PALETTE.T[GREY] // 256).astype(np.uint8)),
    ("palette, 16 bits", tiff(DEEP, photometric="palette", colormap=DEEP_PALETTE),
     DEEP_PALETTE.T[DEEP]),
    ("CMYK, 8 bits", tiff(FOUR, photometric="separated"), CMYK),
    ("CMYK, 8 bits, planes", tiff(planes(FOUR), photometric="separated", **PLANES), CMYK),
)  # fmt: skip
"""Name, file, and the pixels that are meant."""


@pytest.mark.parametrize(("data", "meant"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_colour_is_read_as_it_is_meant(data: bytes, meant: NDArray[Any]) -> None:
    kind = read_kind(io.BytesIO(data))

    pixels = decode(data, kind=kind)

    assert pixels.dtype == meant.dtype == np.dtype(kind.dtype)
    assert np.array_equal(pixels, np.atleast_3d(meant))


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}])
def test_ycbcr_of_8_bits_is_converted_by_the_numbers_of_jpeg(how: dict[str, str]) -> None:
    data = tiff(RGB, photometric="ycbcr", **how)

    pixels = decode(data, kind=PixelKind("uint8", 3))

    assert np.abs(pixels - ycbcr(RGB)).max() <= 1.5


def labs(name: str) -> list[tuple[str, bytes]]:
    return [(f"{name}, {8 * p.dtype.itemsize} bits", tiff(p, photometric=name))
            for p in (RGB, DEEP_RGB)]  # fmt: skip


REFUSED: tuple[tuple[str, bytes], ...] = (
    *labs("cielab"), *labs("icclab"), *labs("itulab"),
    ("YCbCr, 16 bits", tiff(DEEP_RGB, photometric="ycbcr")),
    ("YCbCr, 8 bits, planes", tiff(planes(RGB), photometric="ycbcr", **PLANES)),
    ("YCbCr of other numbers", tiff(RGB, photometric="ycbcr", extratags=[
        (529, 5, 3, (2126, 10000, 7152, 10000, 722, 10000), True)])),
    ("YCbCr of video's range", tiff(RGB, photometric="ycbcr", extratags=[
        (532, 5, 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True)])),
    ("CMYK, 16 bits", tiff(FOUR.astype(np.uint16), photometric="separated")),
    ("CMYK, 8 bits, alpha", tiff(photo(11, 13, channels=5), photometric="separated", **ALPHA)),
    ("inks", tiff(FOUR, photometric="separated", extratags=[(332, 3, 1, 2, True)])),
    ("min-is-white, float32", tiff(GREY.astype(np.float32), photometric="miniswhite")),
    ("min-is-white, int8", tiff((GREY // 2).astype(np.int8), photometric="miniswhite")),
    ("int8 below 0", tiff(np.full((11, 13), -5, np.int8))),
    ("RGB, int8 below 0", tiff(np.full((11, 13, 3), -5, np.int8), photometric="rgb")),
    ("int32 below 0", tiff(np.full((11, 13), -5, np.int32))),
    ("labels of 32 bits", tiff(np.full((64, 64), 70000, np.uint32))),
    ("complex", tiff(GREY.astype(np.complex64))),
    ("colour filter array", tiff(GREY, photometric="cfa")),
    ("a mask", tiff(GREY > 99, photometric=4)),
)  # fmt: skip


@pytest.mark.parametrize("data", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_colour_that_is_converted_nowhere_is_refused_as_sound(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="expected|planes|not CMYK|min-is-white|not that of"):
        decode(data, kind=PixelKind("uint16", 3))


PACKED: tuple[tuple[str, Callable[[], bytes], NDArray[Any]], ...] = (
    ("RGB, 4 bits", lambda: packed(RGB >> 4, 4, photometric=2), (RGB >> 4) * np.uint8(17)),
    ("RGB, 12 bits", lambda: packed(DEEP_RGB >> 4, 12, photometric=2),
     np.floor((DEEP_RGB >> 4) * (65535 / 4095) + 0.5).astype(np.uint16)),
    ("min-is-black, 12 bits, Motorola", lambda: packed(DEEP >> 4, 12, order=">"),
     np.floor((DEEP >> 4) * (65535 / 4095) + 0.5).astype(np.uint16)),
    ("min-is-white, 12 bits", lambda: packed(DEEP >> 4, 12, photometric=0),
     np.floor((4095 - (DEEP >> 4)) * (65535 / 4095) + 0.5).astype(np.uint16)),
)  # fmt: skip


@pytest.mark.parametrize(("make", "meant"), [row[1:] for row in PACKED], ids=[r[0] for r in PACKED])
def test_odd_numbers_of_bits_are_read_by_their_range_or_name_their_reader(
    make: Callable[[], bytes], meant: NDArray[Any]
) -> None:
    kind = PixelKind(meant.dtype.name, np.atleast_3d(meant).shape[2])  # type: ignore[arg-type]
    try:
        pixels = decode(make(), kind=kind)
    except BadImage as error:
        assert isinstance(error, UnsupportedImage) and "imagecodecs" in str(error)
    else:
        assert np.array_equal(pixels, np.atleast_3d(meant))
