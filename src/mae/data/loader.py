"""Batches by number, made here or by worker processes; position is arithmetic."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mae.data.batch import Batch, BatchPlan, training_batch


class _Batches(Dataset[Batch]):
    """A map-style dataset whose items are whole batches."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def __getitem__(self, step: int) -> Batch:
        return training_batch(self.plan, step)


def batches(plan: BatchPlan, *, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Give the batches of steps `start` to `stop`, the same whatever the worker count.

    Args:
        plan: what the batches are a function of.
        start: first step.
        stop: one after the last step.
        workers: processes that read; 0 reads here. They start by spawn, so a script that calls
            this needs its `if __name__ == "__main__":`.
    """
    if workers == 0:
        for step in range(start, stop):
            yield training_batch(plan, step)
        return
    yield from DataLoader(
        _Batches(plan),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_start_worker,
        collate_fn=_as_it_is,
        prefetch_factor=2,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader would else draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )


def _as_it_is(batch: Any) -> Any:
    """Keep the batch: torch's own conversion would turn its tuple of broken pictures to a list."""
    return batch


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which saves and then ends the workers."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
