"""Which sample comes when: a permutation that is computed, not stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mae.data.randomness import Stream, splitmix64, stream_key

_ROUNDS = 6


def shuffled(positions: NDArray[np.int64], *, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map places in an epoch to sample ids.

    A keyed Feistel network permutes the smallest even power of two that holds `n`, and a value
    that falls outside walks on along its cycle, so the map is a permutation of `range(n)` with
    constant memory and random access, the same for 10^3 and 10^10 samples.

    Args:
        positions: places in [0, n), any shape.
        n: samples in the data.
        seed: key of the run.
        epoch: pass over the data; each has an order of its own.

    Returns:
        Sample ids in [0, n), same shape.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = stream_key(seed, epoch, stream=Stream.ORDER) ^ np.arange(_ROUNDS, dtype=np.uint64)
    keys = splitmix64(keys)
    ids = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := ids >= n).any():
        ids[outside] = _feistel(ids[outside], half, keys)
    return ids.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    low = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (splitmix64(right ^ key) & low)
    return (left << half) | right
