"""Which sample comes when: a permutation that is computed, not stored."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mae.data.randomness import Stream, splitmix64, stream_key

_ROUNDS = 6  # even: both halves are mixed in turn
_DRAWN_BELOW = 12  # samples; halves of so few bits are mixed unevenly (decision 0006)


def shuffled(positions: NDArray[np.int64], *, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map places in an epoch to sample ids.

    A keyed Feistel network permutes the smallest power of two that holds `n`, and a value
    that falls outside walks on along its cycle, so the map is a permutation of `range(n)` with
    constant memory and random access, the same for 10^3 and 10^10 samples. Below 12 samples one
    hash draws one of the n! orders instead, each as likely as the others (decision 0006).

    Args:
        positions: places in [0, n), any shape.
        n: samples in the data.
        seed: key of the run.
        epoch: pass over the data; each has an order of its own.

    Returns:
        Sample ids in [0, n), same shape.
    """
    key = stream_key(seed, epoch, stream=Stream.ORDER)
    if n < _DRAWN_BELOW:
        order: NDArray[np.int64] = drawn_orders(np.array([key]), n=n)[0]
        return order[positions]
    bits = (n - 1).bit_length()
    keys = splitmix64(key ^ np.arange(_ROUNDS, dtype=np.uint64))
    ids = _feistel(positions.astype(np.uint64), bits=bits, keys=keys)
    while (outside := ids >= n).any():
        ids[outside] = _feistel(ids[outside], bits=bits, keys=keys)
    return ids.astype(np.int64)


def drawn_orders(keys: NDArray[np.uint64], *, n: int) -> NDArray[np.int64]:
    """Draw an order of few samples for each key, every one as likely as the others.

    A hash modulo n!, off by at most n! / 2^64 (2e-12 for 11), is the number of the order; its
    digits in the factorial number system say which of the samples left comes next.

    Args:
        keys: K hashes, each of one epoch.
        n: samples, fewer than 12.

    Returns:
        K x n sample ids, each row a permutation.
    """
    number = splitmix64(keys) % np.uint64(math.factorial(n))
    orders = np.empty((len(keys), n), dtype=np.int64)
    for place in reversed(range(n)):
        number, digit = np.divmod(number, np.uint64(n - place))
        orders[:, place] = digit
        # What stands behind counts the samples left when this one is taken: make room for it.
        orders[:, place + 1 :] += orders[:, place + 1 :] >= orders[:, [place]]
    return orders


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
