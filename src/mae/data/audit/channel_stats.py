"""Streaming per-channel mean and std over the pixels of many images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding.strips import row_strips


class ChannelSums:
    """Running sums that give mean and std over every pixel without keeping the images.

    Integers are summed as Python integers, so the result is bit-identical to one pass over all
    pixels. Floats keep the mean and the sum of squared differences from it, merged as in Chan,
    Golub and LeVeque (1983): a plain sum of squares would lose the std of values far from 0.
    """

    def __init__(self, channels: int) -> None:
        self._count, self._integers = 0, True
        self._sums = self._squares = np.zeros(channels, object)
        self._mean, self._differences = np.zeros(channels), np.zeros(channels)

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
        strip._count, strip._integers = H * W, pixels.dtype.kind == "u"
        if strip._integers:
            wide = [plane.astype(np.uint64) for plane in planes]  # C-contiguous, and squares fit
            strip._sums = np.array([int(plane.sum()) for plane in wide], object)
            strip._squares = np.array([int(np.square(plane).sum()) for plane in wide], object)
        else:
            exact = np.ascontiguousarray(planes, dtype=np.float64)
            strip._mean, strip._differences = exact.mean(axis=1), exact.var(axis=1) * (H * W)
        self._merge(strip)

    def _merge(self, other: ChannelSums) -> None:
        self._sums, self._squares = self._sums + other._sums, self._squares + other._squares
        total, apart = self._count + other._count, other._mean - self._mean
        self._differences += other._differences + apart**2 * (self._count * other._count / total)
        self._mean += apart * (other._count / total)
        self._count, self._integers = total, other._integers

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, in stored units."""
        mean: list[float] = (self._sums / self._count if self._integers else self._mean).tolist()
        return mean

    @property
    def std(self) -> list[float]:
        """Std of each channel, in stored units."""
        n = self._count
        variance = self._differences / n
        if self._integers:  # divided once, at the end: the large difference is still exact
            variance = (n * self._squares - self._sums**2) / n**2
        std: list[float] = (variance**0.5).tolist()
        return std
