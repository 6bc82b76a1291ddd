"""Streamed mean and std are those of all pixels at once."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from mae.data.audit.channel_stats import ChannelSums
from tests.images import photo


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 1), ("uint16", 251)])
def test_integers_give_exactly_what_numpy_gives_on_all_pixels(dtype: str, factor: int) -> None:
    images = [photo(11 + i, 29 - i, seed=i).astype(dtype) * factor for i in range(7)]
    sums = ChannelSums(3)

    for image in images:
        sums.add(image.astype(dtype))

    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.int64)
    exact = [Fraction(int(channel.sum()), len(channel)) for channel in pixels.T]
    assert sums.mean == [float(mean) for mean in exact]
    assert sums.mean == pytest.approx(pixels.mean(axis=0), rel=1e-15)
    assert sums.std == pytest.approx(pixels.std(axis=0), rel=1e-14)
    squares = [
        Fraction(int((c**2).sum()), len(c)) - m**2 for c, m in zip(pixels.T, exact, strict=True)
    ]
    assert sums.std == [math.sqrt(square) for square in squares]


def test_integers_of_a_billion_pixels_lose_nothing() -> None:
    sums = ChannelSums(1)
    sums.add(np.array([[[65535]], [[65534]]], dtype=np.uint16))
    # as a billion such images would leave it
    sums._count, sums._sums, sums._squares = (
        10**9 * part for part in (sums._count, sums._sums, sums._squares)
    )

    assert sums.mean == [65534.5]
    assert sums.std == [0.5]


def test_floats_far_from_zero_keep_their_std() -> None:
    images = [1e6 + photo(11 + i, 29 - i, seed=i).astype(np.float32) / 64 for i in range(7)]
    sums = ChannelSums(3)

    stds = [sums.add(image.astype(np.float32)) for image in images]

    pixels = np.concatenate([p.astype(np.float32).reshape(-1, 3) for p in images])
    assert sums.mean == pytest.approx(pixels.mean(axis=0, dtype=np.float64), rel=1e-12)
    assert sums.std == pytest.approx(pixels.std(axis=0, dtype=np.float64), rel=1e-9)
    own = images[2].astype(np.float32).std(axis=(0, 1), dtype=np.float64)
    assert stds[2] == pytest.approx(own, rel=1e-9)
