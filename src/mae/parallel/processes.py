"""Several processes of one job: the place of this one, its share, and what all of them found.

A job that knows ranks is the same program in each process: everyone reads the same arguments,
does its share, hands over what it found, and goes on with what everyone found. So each comes to
the same figures, and the first alone writes and speaks.

Torch is imported where it is needed: the command asks for its place before it.
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
"""How long a process waits for the others before it gives them up."""
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Which of the processes of a job this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number among those of the same machine: the GPU it uses."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Give every world_size-th item, from its own rank on: each belongs to one process."""
        return items[self.rank :: self.world_size]


def this_place() -> Place:
    """Read from the environment, as torchrun sets it, which process this is.

    Raises:
        ConfigError: for several processes of which not everything is said.
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
    """Refuse several processes for work that one of them does.

    Raises:
        ConfigError: with the cure.
    """
    if (world_size := this_place().world_size) > 1:
        raise ConfigError(
            f"ranks: {what} takes one process, got {world_size}; start it without torchrun "
            "(evaluate and probe knn take any number)"
        )


class Ranks:
    """The processes of a job, which meet whenever they gather something.

    An error of one is handed over in place of what it found, and raised in all of them: nobody
    waits for one that has given up, and the first can say what was wrong.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._parted = False

    def gathered(self, mine: T) -> list[T]:
        """Give what each process found, in the order of ranks, to all of them.

        Args:
            mine: what this one found, of any size: arrays, numbers, texts, or tuples of such.

        Raises:
            MaeError: that of the first process that met one.
            RankError: if a process is lost.
        """
        return [mine] if self.place.world_size == 1 else self._meet(mine)

    def part(self, error: MaeError | None) -> None:
        """Meet once more, when all work is done or an error has ended it.

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
            # Pickled: the other processes are this same program, started by the same person.
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
"""One process, whose share is everything."""


@contextmanager
def open_ranks(*, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """Meet the other processes of a job that torchrun started; alone, do nothing.

    What lies in host memory is gathered by gloo, also where there are GPUs; beside it NCCL stands
    ready for what lies on them.

    Args:
        timeout_s: how long to wait for another process, here and whenever something is gathered.

    Raises:
        MaeError: of any of the processes, in all of them; only what is raised inside counts.
        RankError: if a process is lost.
    """
    place = this_place()
    if place.world_size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    # First imported while there is a group (torch._dynamo does it), its functions keep the group
    # by their defaults, and with it threads of gloo that abort the process when it ends.
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
