"""Load training batches by step, in this process or in reader processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.batching.reader_pool import MADE_AHEAD as MADE_AHEAD
from mae.data.batching.reader_pool import ReaderPool
from mae.data.batching.readers import exit_if_reader
from mae.data.types import Log

T = TypeVar("T")


def batches(
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    workers: int,
    log: Log = lambda line: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `stop`; they do not depend on the worker count.

    Args:
        plan: everything that the batches depend on besides their steps.
        start: first step.
        stop: one after the last step.
        workers: number of reader processes (decision 0016); 0 reads in this process. They start
            by spawn, so a script that calls this needs `if __name__ == "__main__":`.

        log: called with one line for each reader that was killed and started again.
        is_stopped: asked while a batch is awaited; true ends the iteration.

    Raises:
        UnguardedScript: if the script has no such guard.
        DataError: if an image and all its replacements cannot be read.
        TrainingError: if readers fail again and again, or one hangs.
    """
    if workers == 0:
        for step in range(start, stop):
            yield training_batch(plan, step)
        return
    exit_if_reader()
    with ReaderPool(plan, workers=workers, log=log, is_stopped=is_stopped) as pool:
        yield from pool.batches(start, stop)


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
