"""Streaming per-channel mean and std over the pixels of many images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding.strips import row_strips


class ChannelSums:
    """Running sums that give mean and std over every pixel without keeping the images.

    Integers are summed as integers, so the result is bit-identical to one pass over all pixels.
    Floats keep the mean and the sum of squared deviations, merged as in Chan, Golub and LeVeque
    (1983), since a plain sum of squares would lose the std of values far from 0.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sums, self._squares = [0] * channels, [0] * channels
        self._mean, self._deviations = np.zeros(channels), np.zeros(channels)
        self._integers = True

    def add(self, pixels: NDArray[Any]) -> NDArray[np.float64]:
        """Add an image H W C, a few rows at a time; return the std of each of its channels."""
        own = ChannelSums(pixels.shape[2])
        for rows in row_strips(pixels.shape):
            own._add_strip(pixels[rows])
        self._merge(own)
        return np.array(own.std)

    def _add_strip(self, pixels: NDArray[Any]) -> None:
        H, W, C = pixels.shape
        planes = pixels.reshape(H * W, C).T
        strip = ChannelSums(C)
        strip._count = H * W
        if pixels.dtype.kind == "u":
            wide = [plane.astype(np.uint64) for plane in planes]  # C-contiguous, and squares fit
            strip._sums = [int(plane.sum()) for plane in wide]
            strip._squares = [int(np.square(plane).sum()) for plane in wide]
        else:
            exact = np.ascontiguousarray(planes, dtype=np.float64)
            strip._mean, strip._deviations = exact.mean(axis=1), exact.var(axis=1) * (H * W)
            strip._integers = False
        self._merge(strip)

    def _merge(self, other: ChannelSums) -> None:
        self._sums = [a + b for a, b in zip(self._sums, other._sums, strict=True)]
        self._squares = [a + b for a, b in zip(self._squares, other._squares, strict=True)]
        total, apart = self._count + other._count, other._mean - self._mean
        self._deviations += other._deviations + apart**2 * (self._count * other._count / total)
        self._mean += apart * (other._count / total)
        self._count, self._integers = total, other._integers

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, in stored units."""
        if not self._integers:
            return list(map(float, self._mean))
        return [total / self._count for total in self._sums]

    @property
    def std(self) -> list[float]:
        """Std of each channel, in stored units."""
        if not self._integers:
            return list(map(float, np.sqrt(self._deviations / self._count)))
        return _deviations(self._count, self._sums, self._squares)


def _deviations(count: int, sums: Sequence[int], squares: Sequence[int]) -> list[float]:
    # Divide once, at the end: the difference of the two large integers is still exact.
    pairs = zip(sums, squares, strict=True)
    return [((count * square - total**2) / count**2) ** 0.5 for total, square in pairs]
