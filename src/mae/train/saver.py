"""Save checkpoints during a run, in the training loop or in a thread beside it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from mae.errors import MaeError
from mae.parallel.processes import Communicator
from mae.parallel.thread_group import communicator_of_thread
from mae.runs.checkpoint import NotSaved, save_checkpoint
from mae.runs.state import Snapshot, TrainState, snapshot_of
from mae.train.session import RunInProgress

MOST_FAILED_SAVES = 3


class CheckpointSaver:
    """Save checkpoints; a failed save is reported and retried at the next interval, three times.

    With `async_save`, the state is copied to host memory and a thread writes the copy, one save at
    a time. Its failure is reported after the next step. The last save of a run, and that of a stop,
    are written at once, after the one in the thread.

    Args:
        run: the run. If ranks hold parts of the state, all of them use their savers alike;
            otherwise, rank 0 alone does.
        state: its state.
    """

    def __init__(self, run: RunInProgress, state: TrainState) -> None:
        self._run = run
        self._is_sharded = state.is_sharded
        self._failed = 0
        self._pending: Future[object] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._ranks_of_thread = run.ranks
        self._held = ExitStack()

    def __enter__(self) -> Self:
        run = self._run
        if run.config.async_save and (self._is_sharded or run.ranks.is_main_process):
            if self._is_sharded:
                other = communicator_of_thread(run.ranks)
                self._ranks_of_thread = self._held.enter_context(other)
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
            self._held.enter_context(self._thread)  # on exit, waits for the save in it
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._held:
            try:
                self.poll(wait=True)
            except MaeError as error:
                if kind is None:
                    raise
                self._run.progress.note(f"{error}")  # beside the error that ends the run

    def save(self, state: TrainState) -> None:
        """Save the state; ignore a failure unless it is the third in a row or the last step's.

        Raises:
            NotSaved: otherwise.
        """
        self.poll(wait=True)
        is_last = state.step == self._run.record["num_steps"]
        if self._thread is None or is_last:
            self._count(partial(self._write, state, self._run.ranks), is_last=is_last)
        else:
            copy = snapshot_of(state).copied()
            self._pending = self._thread.submit(self._write, copy, self._ranks_of_thread)

    def poll(self, *, wait: bool = False) -> None:
        """Report the outcome of the save in the thread, once it has ended.

        Raises:
            NotSaved: as `save`.
        """
        pending = self._pending
        if pending is not None and (wait or pending.done()):
            self._pending = None
            self._count(pending.result)

    def save_or_raise(self, state: TrainState) -> None:
        """Save the state at once."""
        self.poll(wait=True)
        self._write(state, self._run.ranks)

    def _count(self, save: Callable[[], object], *, is_last: bool = False) -> None:
        try:
            save()
            self._failed = 0
        except NotSaved as error:
            self._failed += 1
            if self._failed == MOST_FAILED_SAVES or is_last:
                raise
            self._run.progress.note(f"{error}; training continues")

    def _write(self, state: TrainState | Snapshot, ranks: Communicator) -> Path:
        folder, keep = self._run.rundir.checkpoints, self._run.config.keep
        return save_checkpoint(folder, state, extra={}, keep=keep, ranks=ranks)
