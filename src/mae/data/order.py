"""Which sample comes when: a permutation that is computed, not stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mae.data.randomness import Stream, splitmix64, stream_key

_ROUNDS = 6  # even: both halves are mixed in turn


def shuffled(positions: NDArray[np.int64], *, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map places in an epoch to sample ids.

    A keyed Feistel network permutes the smallest power of two that holds `n`, and a value
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
    bits = max(2, (n - 1).bit_length())
    keys = splitmix64(
        stream_key(seed, epoch, stream=Stream.ORDER) ^ np.arange(_ROUNDS, dtype=np.uint64)
    )
    ids = _feistel(positions.astype(np.uint64), bits=bits, keys=keys)
    while (outside := ids >= n).any():
        ids[outside] = _feistel(ids[outside], bits=bits, keys=keys)
    return ids.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], *, bits: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Permute [0, 2^bits): each half is mixed with a hash of the other, in turn."""
    low = np.uint64(bits // 2)
    high_mask, low_mask = (np.uint64((1 << b) - 1) for b in (bits - bits // 2, bits // 2))
    left, right = values >> low, values & low_mask
    for even, odd in keys.reshape(-1, 2):
        left = left ^ (splitmix64(right ^ even) & high_mask)
        right = right ^ (splitmix64(left ^ odd) & low_mask)
    return (left << low) | right
