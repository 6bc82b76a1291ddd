"""Tensors as each rank holds them: whole, or the part of a DTensor on this rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shard(NamedTuple):
    """The part of a tensor that this rank holds; the whole tensor if it is not sharded."""

    local: Tensor
    """A view of the values on this rank, without gradient."""
    size: torch.Size
    """Shape of the whole tensor."""
    offsets: tuple[int, ...]
    """Position of the part in the whole, by axis."""

    def slices(self) -> tuple[slice, ...]:
        """Return the index of this part in the whole tensor."""
        pairs = zip(self.offsets, self.local.shape, strict=True)
        return tuple(slice(start, start + length) for start, length in pairs)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether any of the tensors is a DTensor."""
    # By the attribute: in a run that is not sharded, torch.distributed.tensor is not imported.
    return any(hasattr(tensor, "__create_chunk_list__") for tensor in tensors)


def shard_of(tensor: Tensor) -> Shard:
    """Return this rank's part of a tensor, without communication."""
    if not is_sharded([tensor]):
        return Shard(tensor.detach(), tensor.shape, (0,) * tensor.ndim)
    sharded: Any = tensor.detach()
    (chunk,) = sharded.__create_chunk_list__()
    return Shard(sharded.to_local(), tensor.shape, tuple(chunk.offsets))
