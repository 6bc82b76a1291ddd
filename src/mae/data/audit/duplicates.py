"""Find duplicate images by file content and near-duplicates by appearance."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.augment.crop import resized_crop
from mae.data.decoding.strips import by_strips

MOST_APART = 7
"""Maximum number of the 128 brightness bits in which two look-alike images may differ."""

_GRID = 3  # cells along each side of the reduced image, each 3 x 3 pixels
_SHADE = 12  # of 255: maximum difference between any two shades of look-alike images
_MARGIN = 0.03  # fraction of the brightness range; smaller steps may be noise and are ignored
_BYTES = 16  # of a perceptual hash that hold brightness bits
_BANDS = 8  # of 16 bits: images at most 7 bits apart agree in at least one band
_MOST_COMPARED = 64  # following images with the same band; bounds the work


def digest_of(data: bytes | NDArray[Any]) -> bytes:
    """Hash a file, or pixels with their shape and type, to 16 bytes."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    digest = hashlib.blake2b(f"{data.shape} {data.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(data).data)
    return digest.digest()


def perceptual_hash(pixels: NDArray[Any]) -> bytes:
    """Compute a 124-byte perceptual hash of H W C pixels, robust to resizing and compression.

    The image is reduced to 9 x 9: 128 bits mark where brightness rises to the right and
    downwards, 81 bytes are its brightness, 27 the first three channels of a 3 x 3 grid.
    """
    C = pixels.shape[2]
    edge = 3 * _GRID
    small = reduced(pixels, size=(edge, edge)).astype(np.float64)
    if pixels.dtype.kind == "u":
        small *= 255 / np.iinfo(pixels.dtype).max
    else:  # floats: only the range of the image itself is known
        small = (small - small.min()) * (255 / max(float(np.ptp(small)), 1e-12))
    grey = small.mean(axis=2)
    margin = _MARGIN * np.ptp(grey)
    rises = np.stack([np.diff(grey[:-1], axis=1), np.diff(grey[:, :-1], axis=0)]) > margin
    cells = small.reshape(_GRID, 3, _GRID, 3, C).mean(axis=(1, 3))
    colours = cells[..., [0, 0, 0] if C < 3 else [0, 1, 2]]
    shades = np.concatenate([grey, colours], axis=None).round().astype(np.uint8)
    return bytes(np.packbits(rises)) + bytes(shades)


def reduced(pixels: NDArray[Any], *, size: tuple[int, int]) -> NDArray[Any]:
    """Resize an image H W C: first the width strip by strip, then the height of the whole.

    `resized_crop` uses the same order.
    """

    def narrow(rows: slice) -> NDArray[Any]:
        strip = pixels[rows]
        return resized_crop(strip, (0, 0, *strip.shape[:2]), size=(len(strip), size[1]))

    whole = by_strips(pixels.shape, narrow)
    return resized_crop(whole, (0, 0, *whole.shape[:2]), size=size)


def exact_duplicates(keys: Iterable[Hashable]) -> list[list[int]]:
    """Group the positions of equal keys, as from `digest_of`, in order."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(hashes: Sequence[bytes]) -> list[list[int]]:
    """Group the positions of images that look alike, in order.

    Two hashes are compared only if they agree in one of eight bands of 16 bits; any two that
    differ in at most `MOST_APART` bits do. A chain of images, each like the next, is one group.

    Args:
        hashes: results of `perceptual_hash`.
    """
    if len(hashes) < 2:
        return []
    table = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1)
    bits, shades = table[:, :_BYTES], table[:, _BYTES:].astype(np.int16)
    bands = np.ascontiguousarray(bits).view(np.uint16)  # n 8
    parent = list(range(len(hashes)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for band in range(_BANDS):
        for first, second in _close_pairs(bits, shades, bands[:, band]):
            a, b = sorted((root(first), root(second)))
            parent[b] = a
    return exact_duplicates(map(root, range(len(hashes))))


def _close_pairs(
    bits: NDArray[np.uint8], shades: NDArray[np.int16], band: NDArray[np.uint16]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs that agree in a band and differ little overall."""
    order = np.argsort(band, kind="stable")
    keys = band[order]
    for ahead in range(1, min(_MOST_COMPARED, len(order) - 1) + 1):
        agreeing = np.flatnonzero(keys[:-ahead] == keys[ahead:])
        if not len(agreeing):
            return
        first, second = order[agreeing], order[agreeing + ahead]
        # Unpack to count bits: np.bitwise_count needs numpy 2.0.
        apart = np.unpackbits(bits[first] ^ bits[second], axis=1).sum(axis=1)
        between = np.abs(shades[first] - shades[second]).max(axis=1)
        near = (apart <= MOST_APART) & (between <= _SHADE)
        yield from zip(first[near].tolist(), second[near].tolist(), strict=True)
