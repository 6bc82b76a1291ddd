"""Batches by number, made here or by worker processes; position is arithmetic."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mae.data.batching.batch import Batch, BatchPlan, channels_first, training_batch
from mae.data.batching.readers import Reader, Readers, Sent, as_it_is, leave_if_reader, start_reader
from mae.data.batching.shared_memory import Slots
from mae.errors import MaeError

MADE_AHEAD = 2
"""Batches that every reader process may have made before they are asked for."""

_HELD = 4  # batches beside those, which the training process works with


def batches(plan: BatchPlan, *, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Give the batches of steps `start` to `stop`, the same whatever the worker count.

    Args:
        plan: what the batches are a function of.
        start: first step.
        stop: one after the last step.
        workers: processes that read (decision 0016); 0 reads here. They start by spawn, so a
            script that calls this needs its `if __name__ == "__main__":`.

    Raises:
        UnguardedScript: if a script has none.
        DataError: if no image in a row of many can be read.
        TrainingError: if a reader fails.
    """
    if workers == 0:
        for step in range(start, stop):
            yield training_batch(plan, step)
        return
    leave_if_reader()
    readers, failure = Readers(), None
    slots = Slots(plan, count=MADE_AHEAD * workers + _HELD)
    reader = Reader(plan, slots)
    loader = DataLoader(
        reader,
        batch_size=None,  # "sample" k is the batch of task k
        # Asked for the next task whenever one is sent: only then is it known which slot is free.
        sampler=((step, slots.take()) for step in range(start, stop)),
        collate_fn=as_it_is,
        num_workers=workers,
        multiprocessing_context=readers,
        worker_init_fn=start_reader,
        prefetch_factor=MADE_AHEAD,
        # A generator of its own: the loader would else draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )
    made: list[Any] = []
    # Readers ignore SIGTERM, by which Python ends them at its exit: where this is still held then,
    # letting go of them is what ends them.
    let_go = partial(_let_go, made)
    atexit.register(let_go)
    try:
        with closing(reader):
            made.append(iter(loader))
        for _ in range(start, stop):
            yield _received(slots, next(made[0]))
    except RuntimeError:
        failure = readers.failure()
        if failure is None:
            raise
    finally:
        atexit.unregister(let_go)
        # An error that somebody keeps would keep them too.
        for iterator in made:
            iterator._shutdown_workers()
    if failure is not None:  # raised out here, it holds no traceback of torch's
        raise failure


def _let_go(made: list[Any]) -> None:
    """End the readers, and wait for the threads that sent them their tasks.

    Stopped by Python's exit in the middle, a thread would leave a semaphore that is warned of.
    """
    made.clear()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=1)


def _received(slots: Slots, sent: Batch | Sent | MaeError) -> Batch:
    """Put together what came by two ways."""
    if isinstance(sent, MaeError):
        raise sent
    if isinstance(sent, Batch):
        return sent
    rest: Any = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in sent.rest)
    return Batch(channels_first(slots.lend(sent.slot)), *rest)


def on_device(feed: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Give batches on the device; a GPU copies each while it computes with the one before.

    Other devices get them as they are: the step moves its micro-batches.
    """
    if device.type != "cuda":
        yield from feed
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: tuple[Batch, torch.cuda.Event] | None = None
    for batch in _pinned(feed, device):
        before, copied = copied, _copy(batch, device, side)
        if before is not None:
            yield _handed_over(*before, device)
    if copied is not None:
        yield _handed_over(*copied, device)


def _pinned(feed: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Give batches in pinned memory, where a thread puts each while the one before is used.

    Only from there can a copy go on beside the step.
    """

    def begin() -> None:
        torch.cuda.set_device(device)
        torch.set_num_threads(1)  # as torch's own loader does: a copy needs no more

    with ThreadPoolExecutor(1, initializer=begin) as thread:
        begun: Future[Batch] | None = None
        for batch in feed:
            before, begun = begun, thread.submit(batch.each, torch.Tensor.pin_memory)
            if before is not None:
                yield before.result()
        if begun is not None:
            yield begun.result()


def _copy(
    pinned: Batch, device: torch.device, side: torch.cuda.Stream
) -> tuple[Batch, torch.cuda.Event]:
    """Begin to copy a batch on a stream beside that of the step."""
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
