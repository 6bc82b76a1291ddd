"""Reuse of the memory of CPU tensors from step to step, by settings of glibc's allocator."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of glibc's mallopt(3), and where its defaults end up in a process with large tensors.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_KEPT = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: -1}


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory in this process within the block, and return it to the system after it.

    glibc returns the memory of large tensors when they are freed. On a CPU each step then waits
    for the kernel to clear the same pages again. Peak memory does not change. Other devices and
    other C libraries are left alone.

    Source: docs/performance.md, "the memory of a step".
    """
    library = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(library, "mallopt"):
        yield
        return
    _set(library, _KEPT)
    try:
        yield
    finally:
        _set(library, _USUAL)
        library.malloc_trim(ctypes.c_size_t(0))


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)
