"""Shared-memory slots for batches, reused once a batch is released."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch

from mae.data.batching.batch import BatchPlan
from mae.data.types import Pixels


class SharedBatchPool:
    """Shared memory for the crops of several batches, mapped by every process that receives it.

    Each process maps its pages once. Separate memory for every batch would be mapped and cleared
    each time, and passed through a socket (decision 0016).
    """

    def __init__(self, plan: BatchPlan, *, count: int, readers: int = 1) -> None:
        """Allocate memory for `count` batches of a plan, and a place for each reader."""
        self._shape = (plan.own_batch, *plan.size, plan.kind.channels)
        self._dtype = np.dtype(plan.kind.dtype)
        # `share_memory_` would copy, and so touch the pages of slots that are never used.
        shared = torch.UntypedStorage._new_shared(count * plan.batch_bytes)  # type: ignore[no-untyped-call]
        self._memory = torch.empty(0, dtype=torch.uint8).set_(shared).view(count, -1)
        self._reading = torch.full((readers,), -1)
        self._reading.share_memory_()  # type: ignore[no-untyped-call]
        self._free = deque(range(count))

    def note_reading(self, reader: int, index: int) -> None:
        """Note which image a reader reads."""
        self._reading[reader] = index

    def reading(self, reader: int) -> int:
        """Return the last image that a reader began to read; -1 for none."""
        return int(self._reading[reader])

    def take(self) -> int | None:
        """Reserve a slot; None if all are in use."""
        return self._free.pop() if self._free else None

    def room(self, slot: int) -> Pixels:
        """View the memory of a slot: B h w C."""
        values: Pixels = self._memory[slot].numpy().view(self._dtype)
        return values.reshape(self._shape)

    def lend(self, slot: int) -> Pixels:
        """View the memory of a slot, and free it when the last view of this array is gone."""
        lent = self.room(slot)
        weakref.finalize(lent, self._free.append, slot).atexit = False
        return lent
