"""Stopping when asked and one writer at a time: signals and the lock of a run."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Self

from mae.errors import ConfigError

REQUEUE = 75
"""Exit code after SIGTERM or SIGUSR1: stopped with the state saved, run me again (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: the same, as shells write it (128 + SIGINT)."""

_EXIT_CODES = {
    signal.SIGTERM: REQUEUE,
    signal.SIGUSR1: REQUEUE,
    signal.SIGINT: INTERRUPTED,
}
# `timeout` signals its child and then the child's whole group: two deliveries of one wish,
# microseconds apart. No one presses Ctrl-C twice that fast.
_SAME_WISH_S = 0.2


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignal:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a request that the loop answers between two steps.

    The first signal only sets `requested`. A second one ends the process at once: nothing is
    saved, and nothing is half-written, since a checkpoint appears by one rename. Outside the
    main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        """Exit code to stop with; none while nobody asked."""
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_CODES:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested = _EXIT_CODES[signal.Signals(number)]
            self._requested_at = now
        elif now - self._requested_at > _SAME_WISH_S:
            os._exit(_EXIT_CODES[signal.Signals(number)])


class RunLock:
    """Hold the lock of a run directory; the kernel frees it however the process ends.

    Args:
        path: the lock file, in a folder that exists. It stays when the lock is freed: deleting
            it would let a third process lock a new file while a second waits on the old one.

    Raises:
        ConfigError: on entering, if another process holds it, named by host and pid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str]

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("a+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(
                f"{self.path.parent}: in use by {self.path.read_text() or 'another process'}; "
                "wait until it is done or choose another folder with --out"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be locked: {error.strerror}; choose a folder with --out that "
                "you may write to, on a file system with locks"
            ) from error
        # The content only serves the message above; a full disk is met, and said, elsewhere.
        with suppress(OSError):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
