"""Counter-based random numbers, pure functions of (seed, epoch, sample id, stream).

Draws are vectorised over a batch and stateless, so there is nothing to save or replay. They do not
depend on the worker, the rank, the batch or earlier draws.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np

from mae.data.types import Draws, Hashes, Integers


class Stream(IntEnum):
    """One stream of numbers per purpose."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    REPLACE = 5
    SPLIT = 6
    DROP = 7
    AUGMENT = 8
    ERASE = 9
    ERASE_PIXELS = 10
    MIX = 11
    MIX_SHARE = 12
    HEALTH = 13
    SEGMENT = 14
    JITTER = 15


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(keys: Hashes) -> Hashes:
    """Hash 64-bit keys with SplitMix64 (Steele, Lea and Flood 2014), a bijection."""
    z = keys + _GOLDEN  # arrays wrap around silently, as intended
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=64)
def stream_key(seed: int, epoch: int, *, stream: Stream) -> np.uint64:
    """Hash seed, epoch and stream, which a batch has in common, into one key."""
    key = splitmix64(np.array([seed], dtype=np.uint64))
    for part in (epoch, int(stream)):
        key = splitmix64(key ^ np.uint64(part))
    return np.uint64(key[0])


def uniform(seed: int, epoch: int, ids: Integers, *, stream: Stream, count: int) -> Draws:
    """Draw `count` numbers in [0, 1) for each sample.

    Args:
        seed: key of the run.
        epoch: pass over the data.
        ids: B sample ids.
        stream: purpose of the draw.
        count: numbers for each sample.

    Returns:
        B x count float32, made from the top 24 bits of a hash, so exact in float32.
    """
    keys = splitmix64(ids.astype(np.uint64) ^ stream_key(seed, epoch, stream=stream))
    counters = keys[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN
    bits = splitmix64(counters) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2**-24)


def generator(seed: int, epoch: int, sample: int, *, stream: Stream) -> np.random.Generator:
    """Make a generator for one sample, for draws that are not uniform or of unknown number."""
    keys = np.array([sample], dtype=np.int64).astype(np.uint64)
    key = splitmix64(keys ^ stream_key(seed, epoch, stream=stream))
    return np.random.Generator(np.random.PCG64(int(key[0])))
