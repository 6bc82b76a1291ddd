"""Pictures that are the same: by what their files hold, or by how they look from afar."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.augment import resized_crop

MOST_APART = 7
"""Bits in which the looks of two pictures that look alike may differ, of 128."""

_EDGE = 9  # pixels of a picture seen from afar
_MARGIN = 0.03  # of its range; smaller steps are as likely noise, and count as none
_BANDS = 8  # of 16 bits: pictures at most 7 bits apart agree in one of them
_MOST_COMPARED = 64  # pictures after each that agree in a band; a bound on the work


def digest_of(data: bytes | NDArray[Any]) -> bytes:
    """Digest a file, or pixels with their shape and type, to 16 bytes."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    digest = hashlib.blake2b(f"{data.shape} {data.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(data).data)
    return digest.digest()


def look_of(pixels: NDArray[Any]) -> bytes:
    """Give 128 bits, H W C to 16 bytes, that another size or compression hardly changes.

    Of a picture reduced to 9 x 9 they say where brightness rises to the right, and where downwards.
    """
    H, W, _ = pixels.shape
    small = resized_crop(pixels, (0, 0, H, W), size=(_EDGE, _EDGE)).mean(axis=2, dtype=np.float64)
    margin = _MARGIN * np.ptp(small)
    rises = np.stack([np.diff(small[:-1], axis=1), np.diff(small[:, :-1], axis=0)]) > margin
    return np.packbits(rises).tobytes()


def same(digests: Sequence[bytes]) -> list[list[int]]:
    """Give the positions of equal digests, group by group, in order."""
    groups: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        groups.setdefault(digest, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def alike(looks: Sequence[bytes]) -> list[list[int]]:
    """Give the positions of pictures that look alike, group by group, in order.

    Two looks are compared only if they agree in one of eight bands of 16 bits, which all do that
    differ in so few; a chain of pictures each like the next is one group.
    """
    if len(looks) < 2:
        return []
    words = np.frombuffer(b"".join(looks), dtype=np.uint64).reshape(-1, 2)
    bands = words.view(np.uint16)  # n 8
    parent = list(range(len(looks)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for band in range(_BANDS):
        for first, second in _close_pairs(words, bands[:, band]):
            a, b = sorted((root(first), root(second)))
            parent[b] = a
    groups: dict[int, list[int]] = {}
    for place in range(len(looks)):
        groups.setdefault(root(place), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _close_pairs(words: NDArray[np.uint64], band: NDArray[np.uint16]) -> Iterator[tuple[int, int]]:
    """Give the pairs that agree in a band and differ in few bits altogether."""
    order = np.argsort(band, kind="stable")
    keys = band[order]
    for ahead in range(1, min(_MOST_COMPARED, len(order) - 1) + 1):
        agreeing = np.flatnonzero(keys[:-ahead] == keys[ahead:])
        if not len(agreeing):
            return
        first, second = order[agreeing], order[agreeing + ahead]
        apart = _count_bits(words[first] ^ words[second]).sum(axis=1)
        near = apart <= MOST_APART
        yield from zip(first[near].tolist(), second[near].tolist(), strict=True)


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits of each word; numpy has it only from 2.0 on."""
    each = words.view(np.uint8).reshape(*words.shape, 8)
    counts: NDArray[np.int64] = np.unpackbits(each, axis=-1).sum(axis=-1, dtype=np.int64)
    return counts
