"""Batches by number, made here or by worker processes; position is arithmetic."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mae.data.batch import Batch, BatchPlan, channels_first, training_batch
from mae.data.slots import Slots

MADE_AHEAD = 2
"""Batches that every reader process may have made before they are asked for."""

_HELD = 4  # batches beside those, which the training process works with

T = TypeVar("T")


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
    slots = Slots(plan, count=MADE_AHEAD * workers + _HELD)
    loader = DataLoader(
        _Reader(plan, slots),
        batch_size=None,  # "sample" k is the batch of task k
        # Asked for the next task whenever one is sent: only then is it known which slot is free.
        sampler=((step, slots.take()) for step in range(start, stop)),
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_start_worker,
        prefetch_factor=MADE_AHEAD,
        # A generator of its own: the loader would else draw a seed from torch's global one.
        generator=torch.Generator().manual_seed(plan.seed),
    )
    made = [iter(loader)]
    # Readers ignore SIGTERM, by which Python ends them at its exit: where this is still held then,
    # letting go of them is what ends them.
    let_go = partial(_let_go, made)
    atexit.register(let_go)
    try:
        for _ in range(start, stop):
            sent = next(made[0])
            yield sent if isinstance(sent, Batch) else _received(slots, sent)
    finally:
        atexit.unregister(let_go)


def _let_go(made: list[Any]) -> None:
    """End the readers, and wait for the threads that sent them their tasks.

    Stopped by Python's exit in the middle, a thread would leave a semaphore that is warned of.
    """
    made.clear()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=1)


class _Sent(NamedTuple):
    """A batch on its way from the process that made it."""

    slot: int
    """Where its crops are."""
    rest: tuple[Any, ...]
    """Its other fields, arrays for tensors."""


class _Reader(Dataset[Batch | _Sent]):
    """Makes batches in a process of its own."""

    def __init__(self, plan: BatchPlan, slots: Slots) -> None:
        self._plan = plan
        self._slots = slots

    def __getitem__(self, task: tuple[int, int | None]) -> Batch | _Sent:
        """Make the batch of a step: the crops into a slot, the rest as small arrays beside them.

        Torch would share every tensor by a file of its own and a greeting over a socket, which
        takes longer than to send a small one as it is.
        """
        step, slot = task
        if slot is None:  # the user holds them all: so it goes as torch sends it
            return training_batch(self._plan, step)
        _, *rest = training_batch(self._plan, step, room=self._slots.room(slot))
        return _Sent(slot, tuple(v.numpy() if isinstance(v, torch.Tensor) else v for v in rest))


def _as_it_is(made: T) -> T:
    return made


def _received(slots: Slots, sent: _Sent) -> Batch:
    """Put together what came by two ways."""
    rest: Any = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in sent.rest)
    return Batch(channels_first(slots.lend(sent.slot)), *rest)


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which saves and then ends the workers."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # Nothing is left to do at its end, and threads of queues that still run then can abort it.
    atexit.register(os._exit, 0)
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
