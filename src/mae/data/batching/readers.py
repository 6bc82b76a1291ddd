"""Reader processes that make batches: what they do, and how they fail."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import partial
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, NoReturn

import torch

from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.batching.shared_memory import SharedBatchPool
from mae.data.sources.source import Source
from mae.data.types import Pixels
from mae.errors import ConfigError, DataError, MaeError, TrainingError

NAME = "mae reader"
"""Name of a reader process, which marks it before it imports the script."""
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


def failure(code: int) -> ConfigError | TrainingError:
    """Return the error for a reader that ended before its work was done.

    Args:
        code: exit code of the process; negative: the number of the signal that killed it.
    """
    if code == _REACHED_AGAIN:
        # In another thread, SystemExit would pass without a message.
        in_main = threading.current_thread() is threading.main_thread()
        return (UnguardedScript if in_main else ConfigError)(
            "readers: each reader process imports this script and reached the same call "
            'again; put the call under `if __name__ == "__main__":`, or use workers=0'
        )
    if code >= 0:
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
    if process.name == NAME and getattr(process, "_inheriting", False):
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


class Task(NamedTuple):
    """A batch to make."""

    step: int
    slot: int | None
    """Slot for its crops; none if the training process holds all slots."""


class Sent(NamedTuple):
    """A batch as a reader process sends it."""

    images: Pixels | None
    """B h w C; None if they are in the slot of the task."""
    rest: tuple[Any, ...]
    """Its other fields, with arrays in place of tensors."""


class Reader:
    """What a reader process does: it makes the batches that it is asked for, in order.

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

    def serve(self, tasks: Connection[Any, Any], number: int) -> NoReturn:
        """Answer each task with a batch or an error, until the training process is gone.

        A thread sends the batches: a large one would wait until it is received.
        """
        torch.set_num_threads(1)
        made: SimpleQueue[Sent | Exception] = SimpleQueue()
        Thread(target=self._send, args=(tasks, made), daemon=True).start()
        Thread(target=_end_with_parent, daemon=True).start()
        with suppress(EOFError, OSError):
            while True:
                made.put(self._answer(tasks.recv(), number))
        os._exit(0)  # without Python's cleanup, which would wait for the thread

    @staticmethod
    def _send(tasks: Connection[Any, Any], made: SimpleQueue[Sent | Exception]) -> None:
        with suppress(OSError):
            while True:
                tasks.send(made.get())
        os._exit(0)

    def _answer(self, task: Task, number: int) -> Sent | Exception:
        """Make the batch of a task: crops in a slot, the other fields as small arrays.

        Torch would share every tensor through its own file and a socket handshake, which takes
        longer than to send a small one directly.
        """
        room = None if task.slot is None else self._slots.room(task.slot)
        note = partial(self._slots.note_reading, number)
        try:
            batch = training_batch(self._plan, task.step, room=room, on_read=note)
        except Exception as error:
            return _portable(error)
        images = batch.images.permute(0, 2, 3, 1).numpy() if room is None else None
        rest = (v.numpy() if isinstance(v, torch.Tensor) else v for v in batch[1:])
        return Sent(images, tuple(rest))


def _end_with_parent() -> None:
    """End this process with the training process, also while it reads a file that hangs."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(0)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent; one that is not of mae takes its traceback along."""
    if not isinstance(error, MaeError):
        error.add_note(f"in a reader process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in a reader process:\n{traceback.format_exc()}")
    return error
