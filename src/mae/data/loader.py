"""Batches by number, made here or by worker processes; position is arithmetic."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from mae.data.batch import Batch, BatchPlan, training_batch


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
        range(stop),  # type: ignore[arg-type]  # "sample" k is the number k
        batch_size=None,
        sampler=range(start, stop),
        collate_fn=partial(training_batch, plan),
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_start_worker,
        prefetch_factor=2,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader would else draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which saves and then ends the workers."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
