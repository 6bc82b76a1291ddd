"""Batches by number, made here or by worker processes; position is arithmetic."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from mae.data.batch import Batch, BatchPlan, training_batch

MADE_AHEAD = 2
"""Batches that every reader process may have made before they are asked for."""


def batches(plan: BatchPlan, *, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Give the batches of steps `start` to `stop`, the same whatever the worker count.

    Args:
        plan: what the batches are a function of.
        start: first step.
        stop: one after the last step.
        workers: processes that read (decision 0016); 0 reads here. They start by spawn, so a
            script that calls this needs its `if __name__ == "__main__":`.
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
        prefetch_factor=MADE_AHEAD,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader would else draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which saves and then ends the workers."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)


def on_device(feed: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Give batches on the device; a GPU copies each while it computes with the one before.

    Other devices get them as they are: the step moves its micro-batches.
    """
    if device.type != "cuda":
        yield from feed
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: tuple[Batch, torch.cuda.Event] | None = None
    for batch in feed:
        before, copied = copied, _copy(batch, device, side)
        if before is not None:
            yield _handed_over(*before, device)
    if copied is not None:
        yield _handed_over(*copied, device)


def _copy(
    batch: Batch, device: torch.device, side: torch.cuda.Stream
) -> tuple[Batch, torch.cuda.Event]:
    """Begin to copy a batch on a stream beside that of the step; only pinned memory can be."""
    pinned = batch.each(lambda t: t if t.is_pinned() else t.pin_memory())
    with torch.cuda.stream(side):
        return pinned.to(device), side.record_event()


def _handed_over(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the stream of the step wait for this copy, not for the next one, which has begun."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for value in batch:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            # Its memory belongs to the other stream, which must not use it again too early.
            value.record_stream(stream)
    return batch
