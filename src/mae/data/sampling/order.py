"""Epoch shuffling by a computed permutation with constant memory."""

from __future__ import annotations

import numpy as np

from mae.data.sampling.draws import Stream, splitmix64, stream_key
from mae.data.types import Hashes, Integers

_ROUNDS = 6  # even: both halves are mixed in turn
_DRAWN_BELOW = 30  # samples; Feistel halves of so few bits mix unevenly (decision 0006)


def shuffled(
    positions: Integers, *, n: int, seed: int, epoch: int, stream: Stream = Stream.ORDER
) -> Integers:
    """Map places in an epoch to sample ids.

    A keyed Feistel network permutes [0, 2^bits), the smallest such range that holds `n`, and is
    applied again to values outside `range(n)` (cycle walking). The map is a permutation of
    `range(n)` with random access and the same constant memory for 10^3 and 10^10 samples. Fewer
    than 30 samples are sorted by their hashes instead, which makes every order equally likely
    (decision 0006).

    Args:
        positions: places in [0, n), any shape.
        n: samples in the data.
        seed: key of the run.
        epoch: pass over the data; each has its own order.
        stream: purpose of the order.

    Returns:
        Sample ids in [0, n), same shape.
    """
    key = stream_key(seed, epoch, stream=stream)
    if n < _DRAWN_BELOW:
        order: Integers = drawn_orders(np.array([key]), n=n)[0]
        return order[positions]
    bits = (n - 1).bit_length()
    keys = splitmix64(key ^ np.arange(_ROUNDS, dtype=np.uint64))
    ids = _feistel(positions.astype(np.uint64), bits=bits, keys=keys)
    while (outside := ids >= n).any():
        ids[outside] = _feistel(ids[outside], bits=bits, keys=keys)
    return ids.astype(np.int64)


def drawn_orders(keys: Hashes, *, n: int) -> Integers:
    """Draw a uniformly random order of a few samples for each key by sorting hashes.

    Args:
        keys: K hashes, each of one epoch.
        n: samples.

    Returns:
        K x n sample ids, each row a permutation.
    """
    hashes = splitmix64(splitmix64(keys)[:, None] ^ np.arange(n, dtype=np.uint64))
    return hashes.argsort(axis=1, kind="stable")


def _feistel(values: Hashes, *, bits: int, keys: Hashes) -> Hashes:
    """Permute [0, 2^bits): XOR each half with a hash of the other, in turn."""
    low = np.uint64(bits // 2)
    high_mask, low_mask = (np.uint64((1 << b) - 1) for b in (bits - bits // 2, bits // 2))
    left, right = values >> low, values & low_mask
    for even, odd in keys.reshape(-1, 2):
        left = left ^ (splitmix64(right ^ even) & high_mask)
        right = right ^ (splitmix64(left ^ odd) & low_mask)
    return (left << low) | right
