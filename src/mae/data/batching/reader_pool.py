"""Reader processes as the training process sees them: tasks, batches, deaths and hangs."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Self

import numpy as np
import torch

from mae.data.batching.batch import Batch, BatchPlan, channels_first
from mae.data.batching.readers import NAME, Reader, Sent, Task, failure
from mae.data.batching.shared_memory import SharedBatchPool
from mae.data.types import Log
from mae.errors import TrainingError

MADE_AHEAD = 2
"""Batches that each reader process may prefetch."""
HANG_S = 300
"""Seconds without a batch after which a reader counts as hung."""

_HELD = 4  # further batches, in use by the training process
_MOST_DEATHS = 3
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class _Seat:
    """One of the readers: its process, replaced when it is killed, and its unanswered tasks.

    Readers ignore the signals that stop a run, from their first instruction on: the training
    process handles them, saves and then ends the readers.
    """

    def __init__(self, reader: Reader, number: int) -> None:
        self.number = number
        self.tasks = deque[Task]()
        self.died_at: int | None = None
        """Step of the batch that it was making when it was last killed."""
        self._reader = reader
        self.start()

    def start(self) -> None:
        """Start the process, and ask it for the batches that are still due."""
        self.connection: Connection[Any, Any]
        self.connection, theirs = multiprocessing.Pipe()
        serve = self._reader.serve
        self.process = SpawnProcess(
            target=serve, args=(theirs, self.number), name=NAME, daemon=True
        )
        resource_tracker.ensure_running()  # its start, before the first process, unblocks signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # a process inherits the mask
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        for task in self.tasks:
            self._send(task)

    def ask(self, task: Task) -> None:
        self.tasks.append(task)
        self._send(task)

    def _send(self, task: Task) -> None:
        with suppress(OSError):  # it is dead: the next wait for a batch finds that
            self.connection.send(task)

    def receive(self) -> Sent | Exception | None:
        """Receive the answer to the first task; None if the process died before it sent it."""
        try:
            sent: Sent | Exception = self.connection.recv()
        except (EOFError, OSError):
            return None
        return sent

    def end(self) -> None:
        """End the process at once: it writes nothing but shared memory."""
        self.process.kill()
        self.connection.close()
        self.process.join(timeout=1)  # one that waits for a disk that does not answer stays


class ReaderPool:
    """Reader processes that make the batches of a plan, each in turn.

    A reader that is killed (most often because memory ran out) is started again and makes the same
    batches: nothing is lost or doubled, since a batch is a function of its step.

    Args:
        plan: defines the batches.
        workers: number of readers.
        log: called with one line for each reader that is started again.
        is_stopped: asked while a batch is awaited; true ends the batches.
    """

    def __init__(
        self, plan: BatchPlan, *, workers: int, log: Log, is_stopped: Callable[[], bool]
    ) -> None:
        self._plan, self._log, self._is_stopped = plan, log, is_stopped
        self._slots = SharedBatchPool(plan, count=MADE_AHEAD * workers + _HELD, readers=workers)
        self._reader = Reader(plan, self._slots)
        self._seats = [_Seat(self._reader, number) for number in range(workers)]
        self._deaths = 0

    def __enter__(self) -> Self:
        # If the generator of the batches still exists at Python's exit, this ends the readers.
        atexit.register(self.close)
        return self

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self.close)
        self.close()

    def close(self) -> None:
        """End all readers."""
        for seat in self._seats:
            seat.end()
        self._reader.close()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop`.

        Raises:
            Exception: that of a reader, as it was raised there.
            TrainingError: if a reader fails again and again, or hangs.
        """
        seats = self._seats
        ahead = start + MADE_AHEAD * len(seats)
        for step in range(start, min(ahead, stop)):
            self._ask(step)
        for step in range(start, stop):
            seat = seats[step % len(seats)]
            sent = self._receive(seat)
            if sent is None:
                return
            if isinstance(sent, Exception):
                raise sent
            task = seat.tasks.popleft()
            if (later := step + MADE_AHEAD * len(seats)) < stop:
                self._ask(later)
            yield self._batch(task, sent)

    def _ask(self, step: int) -> None:
        self._seats[step % len(self._seats)].ask(Task(step, self._slots.take()))

    def _batch(self, task: Task, sent: Sent) -> Batch:
        """Assemble a batch from its images and its other fields."""
        images = sent.images
        if images is None:
            assert task.slot is not None
            images = self._slots.lend(task.slot)
        rest: Any = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in sent.rest)
        return Batch(channels_first(images), *rest)

    def _receive(self, seat: _Seat) -> Sent | Exception | None:
        """Wait for the next batch of a reader; None if the run is asked to stop meanwhile."""
        waited = 0
        while True:
            busy = {other.process.sentinel: other for other in self._seats if other.tasks}
            ready = wait([seat.connection, *busy], timeout=1)
            if seat.connection in ready and (sent := seat.receive()) is not None:
                return sent
            # A process that ends closes connection and sentinel, in any order.
            dead = {busy[end] for end in ready if isinstance(end, int)}
            for other in dead | ({seat} if seat.connection in ready else set()):
                other.process.join(timeout=5)
                self._restart(other)
            if self._is_stopped():
                return None
            # In waits, not by a clock: the whole job may be suspended, and go on hours later.
            waited = 0 if ready else waited + 1
            if waited >= HANG_S:
                raise TrainingError(self._hung(seat))

    def _restart(self, seat: _Seat) -> None:
        """Start a killed reader again.

        Raises:
            TrainingError: if it ended by itself, died at this batch before, or readers died three
                times.
        """
        code, step = seat.process.exitcode or 0, seat.tasks[0].step
        self._deaths += 1
        if code >= 0 or self._deaths == _MOST_DEATHS or seat.died_at == step:
            raise failure(code)
        seat.died_at = step
        name = signal.Signals(-code).name
        self._log(
            f"readers: process {seat.process.pid} was killed by {name} while it made the batch of "
            f"step {step + 1}{self._read_last(seat)}; another one makes it"
        )
        seat.end()
        seat.start()

    def _hung(self, seat: _Seat) -> str:
        return (
            f"readers: process {seat.process.pid} gave no batch in {HANG_S} s, of step "
            f"{seat.tasks[0].step + 1}{self._read_last(seat)}; check the disk, or the network that "
            "it is on, and give the same command again"
        )

    def _read_last(self, seat: _Seat) -> str:
        index = self._slots.reading(seat.number)
        return f", reading {self._plan.source.name(index)}" if index >= 0 else ""
