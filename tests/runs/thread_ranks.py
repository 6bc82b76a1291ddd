"""Two ranks as threads of this process, that save halves of a state; for tests of files alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from mae.parallel.processes import Communicator, ProcessInfo
from mae.parallel.shards import Shard
from mae.runs.sharded import save_sharded
from mae.runs.state import Snapshot, TrainState, snapshot_of

T = TypeVar("T")


class ThreadRank(Communicator):
    """A rank of two; what they gather lies on a common board."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(ProcessInfo(rank, 2, rank, 2))
        self._board, self._barrier = board, barrier

    def all_gather(self, mine: Any) -> list[Any]:
        self._board[self.process.rank] = mine
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found


def on_two(act: Callable[[Communicator], T]) -> list[T | BaseException]:
    """Call a function on two ranks; return what each of them returned or raised."""
    board, barrier = [None, None], threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(act, ThreadRank(rank, board, barrier)) for rank in (0, 1)]
        errors = [future.exception() for future in futures]
    pairs = zip(errors, futures, strict=True)
    return [future.result() if error is None else error for error, future in pairs]


def half_of(state: TrainState, rank: int) -> Snapshot:
    """Return the rows of a state that a rank of two holds; scalars are on both."""

    def half(shard: Shard) -> Shard:
        if not shard.size:
            return shard
        first = (shard.size[0] + 1) // 2
        rows = slice(0, first) if rank == 0 else slice(first, None)
        offsets = (rank * first, *shard.offsets[1:])
        return shard._replace(local=shard.local[rows].clone(), offsets=offsets)

    whole = snapshot_of(state)
    model, moments = ({n: half(s) for n, s in x.items()} for x in (whole.model, whole.moments))
    return whole._replace(model=model, moments=moments, is_sharded=True)


def save_halves(folder: Path, state: TrainState, *, keep: int = 3) -> list[Path | BaseException]:
    """Save a state as two ranks do; return the path, or the error, of each."""
    return on_two(
        lambda ranks: save_sharded(
            folder,
            half_of(state, ranks.process.rank),
            extra={"run": "tiny"},
            keep=keep,
            ranks=ranks,
        )
    )


def scaled(state: TrainState, factor: float) -> TrainState:
    """Multiply the parameters, as a run of another seed might have them."""
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.mul_(factor)
    return state
