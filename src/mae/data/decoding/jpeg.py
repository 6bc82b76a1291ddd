"""Strict JPEG decoding, header repair and detection of unsupported variants."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg

from mae.data.types import Pixels, Size

# Markers (ITU-T T.81, table B.1).
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # Huffman, arithmetic, quantization, restart interval
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last is JPEG-LS
_DECODED = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)  # supported by libjpeg-turbo
_PASSED_OVER = frozenset((*range(0xE0, 0xF0), 0xFE, 0xDC))  # APPn, comment, number of lines
_LONE = frozenset((0x01, *range(0xD0, 0xD8)))  # without a length field
_SCAN = 0xDA
_START = b"\xff\xd8"
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_WHOLE_SPECTRUM = b"\0\x3f\0"  # the last bytes of every scan header of a sequential file


class _Segment(NamedTuple):
    marker: int
    body: bytes
    end: int
    """Offset of the next segment."""


def segments(data: bytes) -> Iterator[_Segment]:
    """Yield the header segments up to the first scan header, as libjpeg finds them.

    Bytes between segments are skipped. Iteration stops at an invalid segment.
    """
    place, marker = 2, 0
    while marker != _SCAN:
        place = data.find(b"\xff", place)
        if place < 0:
            return
        while data[place : place + 1] == b"\xff":
            place += 1
        marker = data[place] if place < len(data) else 0
        place += 1
        if not marker or marker in _LONE:
            continue
        (length,) = struct.unpack(">H", data[place : place + 2].rjust(2, b"\0"))
        if length < 2 or place + length > len(data):
            return
        yield _Segment(marker, data[place + 2 : place + length], place + length)
        place += length


def without_damaged_head(data: bytes) -> bytes | None:
    """Rewrite a JPEG so that its header holds only what the pixels depend on.

    libjpeg warns about bytes between segments, a damaged profile, an unknown JFIF version and a
    scan header that is invalid in sequential files, but decodes the same pixels without them.

    Returns:
        The rewritten file; None if the header cannot be parsed.
    """
    kept, frame = [_START], 0
    for marker, body, end in segments(data):
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            kept.append(_JFIF)
        elif marker in _TABLES or marker in _FRAMES or (marker == 0xEE and body[:5] == b"Adobe"):
            frame = marker if marker in _FRAMES else frame
            kept.append(_segment(marker, body))
        elif marker == _SCAN:
            sequential = frame in (0xC0, 0xC1)
            kept.append(_segment(marker, body[:-3] + _WHOLE_SPECTRUM if sequential else body))
            return b"".join([*kept, data[end:]])
        elif marker not in _PASSED_OVER:
            return None
    return None


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def other_process(data: bytes) -> str:
    """Return why a valid JPEG is not supported; "" for a supported or damaged one.

    Args:
        data: the file, or its header.
    """
    for marker, body, _ in segments(data):
        if marker in _FRAMES and len(body) >= 6:
            bits, components = body[0], body[5]
            if marker not in _DECODED:
                return "hierarchical JPEG or JPEG-LS, expected baseline or progressive"
            if bits != 8:
                return f"JPEG of {bits} bits, expected 8"
            if components not in (1, 3, 4):
                return f"JPEG of {components} components, expected grey, colour or CMYK"
    return ""


def strictly_decoded(data: bytes, space: str, size: Size, *, shrink: int = 1) -> Pixels | None:
    """Decode a JPEG and fail on any libjpeg warning; Pillow ignores most damage.

    Args:
        data: the file.
        space: RGB, GRAY, or CMYK for a file of four components.
        size: its height and width.
        shrink: 2, 4 or 8 to divide both sides by it, rounded up.

    Returns:
        H W C; None for chroma subsampling that the decoder does not support.
    Raises:
        ValueError: with libjpeg's warning or error.
    """
    height, width = (-(-side // shrink) for side in size)
    try:
        # The smallest scale with at least this many rows and columns.
        pixels: Pixels = simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width)
        return pixels
    except ValueError as error:
        if "subsampling level" in str(error):
            return None
        raise
