"""Load training batches by step, in this process or in reader processes."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from mae.data.batching.batch import Batch, BatchPlan, channels_first, training_batch
from mae.data.batching.readers import Reader, Readers, Sent, exit_if_reader, start_reader, unchanged
from mae.data.batching.shared_memory import SharedBatchPool
from mae.errors import MaeError

T = TypeVar("T")

MADE_AHEAD = 2
"""Batches that each reader process may prefetch."""

_HELD = 4  # further batches, in use by the training process


def batches(plan: BatchPlan, *, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `stop`; they do not depend on the worker count.

    Args:
        plan: everything that the batches depend on besides their steps.
        start: first step.
        stop: one after the last step.
        workers: number of reader processes (decision 0016); 0 reads in this process. They start
            by spawn, so a script that calls this needs `if __name__ == "__main__":`.

    Raises:
        UnguardedScript: if the script has no such guard.
        DataError: if an image and all its replacements cannot be read.
        TrainingError: if a reader fails.
    """
    if workers == 0:
        for step in range(start, stop):
            yield training_batch(plan, step)
        return
    exit_if_reader()
    readers, failure = Readers(), None
    slots = SharedBatchPool(plan, count=MADE_AHEAD * workers + _HELD)
    reader = Reader(plan, slots)
    loader = DataLoader(
        reader,
        batch_size=None,  # "sample" k is the batch of task k
        # A generator: each task takes a free slot only when it is sent.
        sampler=((step, slots.take()) for step in range(start, stop)),
        collate_fn=unchanged,
        num_workers=workers,
        multiprocessing_context=readers,
        worker_init_fn=start_reader,
        prefetch_factor=MADE_AHEAD,
        # Without a generator, the loader would draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )
    made: list[Any] = []
    # Readers ignore SIGTERM, which Python sends them at exit: if this generator still exists then,
    # dropping the iterator is what ends them.
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
        # A stored exception would keep the readers alive, too.
        for iterator in made:
            iterator._shutdown_workers()
    if failure is not None:  # raised here, its traceback has no frames of torch
        raise failure


def _let_go(made: list[Any]) -> None:
    """End the readers, and wait for the threads that send them their tasks.

    If Python's exit interrupted such a thread, it would leak a semaphore, with a warning.
    """
    made.clear()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=1)


def _received(slots: SharedBatchPool, sent: Batch | Sent | MaeError) -> Batch:
    """Assemble a batch from its slot and its other fields; raise an error that was sent."""
    if isinstance(sent, MaeError):
        raise sent
    if isinstance(sent, Batch):
        return sent
    rest: Any = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in sent.rest)
    return Batch(channels_first(slots.lend(sent.slot)), *rest)


def on_device(feed: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device; a GPU copies each while it computes with the previous one.

    On other devices, batches pass through unchanged: the training step moves its micro-batches.
    """
    if device.type != "cuda":
        yield from feed
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch, copied in _one_ahead(_copy(batch, device, side) for batch in _pinned(feed, device)):
        # Wait for this copy, but not for the next one, already started.
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        for value in batch:
            if isinstance(value, torch.Tensor) and value.is_cuda:
                # Its memory belongs to the side stream, which must not reuse it too early.
                value.record_stream(stream)
        yield batch


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one is made, which has then been started."""
    made = deque[T]()
    for item in items:
        made.append(item)
        if len(made) > 1:
            yield made.popleft()
    yield from made


def _pinned(feed: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches in pinned memory; a thread pins each while the previous one is used.

    Only copies from pinned memory can overlap with the training step.
    """

    def begin() -> None:
        torch.cuda.set_device(device)
        torch.set_num_threads(1)  # as torch's own loader does; enough for a copy

    with ThreadPoolExecutor(1, initializer=begin) as thread:
        for pinned in _one_ahead(thread.submit(b.each, torch.Tensor.pin_memory) for b in feed):
            yield pinned.result()


def _copy(
    pinned: Batch, device: torch.device, side: torch.cuda.Stream
) -> tuple[Batch, torch.cuda.Event]:
    """Start to copy a batch on a side stream."""
    with torch.cuda.stream(side):
        return pinned.to(device), side.record_event()
