"""Distributed evaluation across processes: rank lookup and gathering of results.

Every rank runs the same program with the same arguments, computes its part, gathers the results
of all ranks, and continues with them. All ranks therefore reach the same figures, and only rank 0
writes and prints.

Torch is imported lazily, since the command line reads its rank before importing torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from mae.errors import ConfigError, MaeError, RankError

T = TypeVar("T")

TIMEOUT_S = 1800.0
"""Seconds that a process waits for the others before raising an error."""
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Rank of this process in a job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank within the machine, which is the index of the GPU it uses."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this rank: every world_size-th, starting at its rank."""
        return items[self.rank :: self.world_size]


def this_place() -> Place:
    """Read the rank of this process from the environment variables set by torchrun.

    Raises:
        ConfigError: if WORLD_SIZE is above 1 and another variable is missing or malformed.
    """
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return Place()
    said = {name: os.environ.get(name, "") for name in (*_NUMBERS, *_MEETING)}
    wrong = [f"{name}={text}" for name, text in said.items() if not text]
    wrong += [f"{name}={said[name]}" for name in _NUMBERS if not said[name].isdecimal()]
    if wrong:
        raise ConfigError(
            f"ranks: WORLD_SIZE is {said['WORLD_SIZE']!r}, but got {wrong[0]}, expected what "
            "torchrun sets; start it by torchrun, or unset WORLD_SIZE"
        )
    rank, world_size, local_rank = (int(said[name]) for name in _NUMBERS)
    return Place(rank, world_size, local_rank)


def require_alone(what: str) -> None:
    """Require a single process, for work that is not distributed.

    Raises:
        ConfigError: if there are several; the message says what to do.
    """
    if (world_size := this_place().world_size) > 1:
        raise ConfigError(
            f"ranks: {what} takes one process, got {world_size}; start it without torchrun "
            "(evaluate and probe knn take any number)"
        )


class Ranks:
    """The processes of a job, synchronised at each gather.

    An error in one process is gathered in place of its result and raised in all of them, so that
    none waits for a failed process and rank 0 can report the error.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._parted = False

    def gathered(self, mine: T) -> list[T]:
        """Gather the results of all processes, in rank order, in every process.

        Args:
            mine: result of this process, of any size: arrays, numbers, strings, or tuples of
                them.

        Raises:
            MaeError: the error of the lowest rank that has one.
            RankError: if a process is lost.
        """
        return [mine] if self.place.world_size == 1 else self._meet(mine)

    def part(self, error: MaeError | None) -> None:
        """Synchronise a last time, after all work is done or an error has ended it.

        Raises:
            MaeError: as `gathered`.
        """
        if not self._parted and self.place.world_size > 1:
            self._meet(error)
        self._parted = True

    def _meet(self, mine: T) -> list[T]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.place.world_size
        try:
            # Pickle is safe here: the other processes run the same program for the same user.
            dist.all_gather_object(found, mine)
        except RuntimeError as error:
            self._parted = True
            raise _lost(error) from error
        for each in found:
            if isinstance(each, MaeError):
                self._parted = True
                raise each
        return found


ALONE = Ranks(Place())
"""A job of one process."""


@contextmanager
def open_ranks(*, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """Initialise the process group of a job started by torchrun; do nothing for one process.

    Objects in host memory are gathered by gloo, also where there are GPUs; NCCL is initialised
    for tensors on GPUs.

    Args:
        timeout_s: seconds to wait for another process, here and at each gather.

    Raises:
        MaeError: raised inside the block by any process; raised again in all of them.
        RankError: if a process is lost.
    """
    place = this_place()
    if place.world_size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    # If this module is first imported while a group exists (torch._dynamo does that), its default
    # arguments keep the group alive, and with it gloo threads that abort the process at exit.
    import torch.distributed.nn.functional

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend,
            timeout=timedelta(seconds=timeout_s),
            rank=place.rank,
            world_size=place.world_size,
        )
    except RuntimeError as error:
        raise _lost(error) from error
    ranks = Ranks(place)
    try:
        yield ranks
        ranks.part(None)
    except MaeError as error:
        ranks.part(error)
        raise
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> RankError:
    reason = f"{error}".partition("\n")[0]
    return RankError(
        f"ranks: another process of this job ended or did not answer ({reason}); see what it "
        "said, and start all of them again"
    )
