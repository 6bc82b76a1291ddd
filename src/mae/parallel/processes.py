"""Distributed evaluation across processes: rank lookup and gathering of results.

Each rank runs the same program with the same arguments on its shard of the data and gathers the
results of all ranks, so that all compute the same scores. Only rank 0 writes and prints.

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
"""Default timeout of a gather in seconds."""
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


class ProcessInfo(NamedTuple):
    """Rank of a process and number of processes, as torchrun numbers them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank within the machine, and the index of its GPU."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this rank: every `world_size`-th, starting at its rank."""
        return items[self.rank :: self.world_size]


def this_process() -> ProcessInfo:
    """Read the rank of this process from the environment variables set by torchrun.

    Raises:
        ConfigError: if WORLD_SIZE is above 1 and another variable is missing or malformed.
    """
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return ProcessInfo()
    values = {name: os.environ.get(name, "") for name in (*_NUMBERS, *_ADDRESS)}
    for name, text in values.items():
        if not text or (name in _NUMBERS and not text.isdecimal()):
            raise ConfigError(
                f"ranks: WORLD_SIZE is {values['WORLD_SIZE']!r}, but got {name}={text}, expected "
                "what torchrun sets; start it by torchrun, or unset WORLD_SIZE"
            )
    return ProcessInfo(*(int(values[name]) for name in _NUMBERS))


def require_single_process(what: str) -> None:
    """Raise a ConfigError if a verb that is not distributed is started as several processes."""
    if (world_size := this_process().world_size) > 1:
        raise ConfigError(
            f"ranks: {what} takes one process, got {world_size}; start it without torchrun "
            "(evaluate and probe knn take any number)"
        )


class Communicator:
    """The processes of a job, synchronised at each gather.

    If one rank fails, its error is gathered and raised on every rank, so that none hangs.
    """

    def __init__(self, process: ProcessInfo) -> None:
        self.process = process
        self.is_main_process = process.is_main_process
        self._closed = False

    def all_gather(self, mine: T) -> list[T]:
        """Gather the results of all processes, in rank order, in every process.

        Args:
            mine: picklable result of this process, of any size.

        Raises:
            MaeError: the error of the lowest rank that has one.
            RankError: if a process is lost.
        """
        if self.process.world_size == 1:
            return [mine]
        import torch.distributed as dist

        results: list[Any] = [None] * self.process.world_size
        try:
            # Pickle is safe here: the other processes run the same program for the same user.
            dist.all_gather_object(results, mine)
        except RuntimeError as error:
            self._closed = True
            raise _lost(error) from error
        for each in results:
            if isinstance(each, MaeError):
                self._closed = True
                raise each
        return results

    def close(self, error: MaeError | None) -> None:
        """Synchronise a last time, after the work of this rank is done or has failed.

        Raises:
            MaeError: as `all_gather`.
        """
        if not self._closed:
            self.all_gather(error)
        self._closed = True


SINGLE_PROCESS = Communicator(ProcessInfo())
"""The communicator of a job of one process."""


@contextmanager
def open_communicator(*, timeout_s: float = TIMEOUT_S) -> Iterator[Communicator]:
    """Initialise the process group of a job started by torchrun; do nothing for one process.

    Objects in host memory are gathered by gloo, also where there are GPUs; NCCL is initialised
    for tensors on GPUs.

    Args:
        timeout_s: seconds to wait for the other processes, here and at each gather.

    Raises:
        MaeError: an error of any process inside the block, in all of them.
        RankError: if a process is lost.
    """
    process = this_process()
    if process.world_size == 1:
        yield SINGLE_PROCESS
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
            rank=process.rank,
            world_size=process.world_size,
        )
    except RuntimeError as error:
        raise _lost(error) from error
    ranks = Communicator(process)
    try:
        yield ranks
        ranks.close(None)
    except MaeError as error:
        ranks.close(error)
        raise
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> RankError:
    reason = f"{error}".partition("\n")[0]
    return RankError(
        f"ranks: another process of this job ended or did not answer ({reason}); see its "
        "messages, and start all of them again"
    )
