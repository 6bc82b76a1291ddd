"""Collectives of a second thread, beside those of the main one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mae.parallel.processes import Communicator


@contextmanager
def communicator_of_thread(ranks: Communicator) -> Iterator[Communicator]:
    """Open a communicator of the same processes for one other thread; a collective.

    Collectives of two threads would mix in one process group, so it has its own, by gloo.

    Args:
        ranks: the processes of the job.
    """
    if ranks._store is None:
        yield ranks
        return
    import torch.distributed as dist

    with ranks.failures_of_others():
        group: Any = dist.new_group(backend="gloo")
    other = Communicator(ranks.process, ranks._store, ranks._watchdog, group)
    try:
        yield other
    finally:
        other._group = None  # a reference would keep its threads alive at the exit
        dist.destroy_process_group(group)
