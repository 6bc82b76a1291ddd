"""Reader processes that make batches: start, tasks and failures."""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from multiprocessing import reduction
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import Dataset

from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.batching.shared_memory import SharedBatchPool
from mae.data.sources.source import Source
from mae.errors import ConfigError, DataError, MaeError, TrainingError

T = TypeVar("T")

_NAME = "mae reader"
_REACHED_AGAIN = 78
"""Exit code of a reader that reached the call that started it while importing the script."""


class UnguardedScript(ConfigError, SystemExit):
    """A script that starts readers has no `if __name__ == "__main__":`.

    Uncaught, it ends the script with one line, as `sys.exit` does, since the traceback would not
    show the mistake.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"mae: {message}"  # printed to stderr, with exit code 1


class Readers(SpawnContext):
    """Spawn context that starts readers and records how they ended."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process whose name marks it as a reader before it imports the script."""
        process = SpawnProcess(*args, **(options | {"name": _NAME}))
        self._started.append(process)
        return process

    def failure(self) -> ConfigError | TrainingError | None:
        """Return the error of the first reader that failed; None if none has."""
        codes = [process.exitcode for process in self._started if process.exitcode]
        if not codes:
            return None
        if _REACHED_AGAIN in codes:
            # In another thread, SystemExit would pass without a message.
            in_main = threading.current_thread() is threading.main_thread()
            return (UnguardedScript if in_main else ConfigError)(
                "readers: each reader process imports this script and reached the same call "
                'again; put the call under `if __name__ == "__main__":`, or use workers=0'
            )
        if (code := codes[0]) > 0:
            return TrainingError(
                f"readers: a reader process ended with exit code {code}, see above; try workers=0"
            )
        return TrainingError(
            f"readers: a reader process was killed by {signal.Signals(-code).name}; SIGKILL means "
            "that memory ran out, as a rule: use fewer workers"
        )


def exit_if_reader() -> None:
    """Exit silently if this process is a reader that reached this call while importing the script.

    The process that started it reports the error, once for all readers.
    """
    process = multiprocessing.current_process()
    if process.name == _NAME and getattr(process, "_inheriting", False):
        os._exit(_REACHED_AGAIN)


def why_no_readers(source: Source) -> str | None:
    """Return why readers cannot start from this script; None if they can.

    A reader imports the script from its file. Without a file (`python -c`, notebooks) it imports
    nothing, which works unless the class of the source is defined in that script.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is not None or (file is not None and Path(file).is_file()):
        return None
    if file is None and type(source).__module__ != "__main__":
        return None
    return (
        "workers: 0, since reader processes would have to import this script; save it as a file "
        'with the call under `if __name__ == "__main__":`'
    )


class Sent(NamedTuple):
    """A batch as a reader process sends it."""

    slot: int
    """Slot that holds its crops."""
    rest: tuple[Any, ...]
    """Its other fields, with arrays in place of tensors."""


class Reader(Dataset[Batch | Sent | MaeError]):
    """Dataset that makes batches in a reader process.

    Spawn writes the arguments of a process into a pipe and blocks until they are read. The image
    names of a plan would fill the pipe (64 KiB), so the plan is sent in an unnamed temporary file:
    readers start in parallel, and one that dies while it imports the script cannot block the
    training process forever.
    """

    def __init__(self, plan: BatchPlan, slots: SharedBatchPool) -> None:
        """Write the plan to a temporary file.

        Raises:
            DataError: if it cannot be written.
        """
        self._plan, self._slots = plan, slots
        try:
            self._file = tempfile.TemporaryFile()
            pickle.dump(plan, self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"readers: cannot write to {tempfile.gettempdir()} ({error.strerror}); free some "
                "space, set TMPDIR, or use workers=0"
            ) from error

    def close(self) -> None:
        """Close the file; readers that have started keep theirs."""
        self._file.close()

    def __getstate__(self) -> tuple[Any, SharedBatchPool]:
        return reduction.DupFd(self._file.fileno()), self._slots

    def __setstate__(self, sent: tuple[Any, SharedBatchPool]) -> None:
        handle, self._slots = sent
        # Mapped, not read: all readers share one position in the file.
        with (
            open(handle.detach(), "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            self._plan = pickle.loads(content)

    def __getitem__(self, task: tuple[int, int | None]) -> Batch | Sent | MaeError:
        """Make the batch of a step: crops in a slot, the other fields as small arrays.

        Torch would share every tensor through its own file and a socket handshake, which takes
        longer than to send a small one directly. Errors are returned instead of raised, since
        torch would raise them again with the text of a traceback.
        """
        step, slot = task
        try:
            if slot is None:  # the caller holds all slots: torch sends the batch
                return training_batch(self._plan, step)
            _, *rest = training_batch(self._plan, step, room=self._slots.room(slot))
        except MaeError as error:
            return error
        return Sent(slot, tuple(v.numpy() if isinstance(v, torch.Tensor) else v for v in rest))


def unchanged(made: T) -> T:
    """Return a batch as it is, without collating."""
    return made


def start_reader(worker: int) -> None:
    """Ignore signals; the training process handles them, saves and then ends the readers."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # No cleanup is needed at exit, and queue threads that still run then can abort the process.
    atexit.register(os._exit, 0)
    torch.set_num_threads(1)
