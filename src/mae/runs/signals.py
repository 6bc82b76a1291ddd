"""Stopping when asked and one writer at a time: signals and the lock of a run."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Self

from mae.errors import ConfigError

REQUEUE = 75
"""Exit code after SIGTERM or SIGUSR1: stopped with the state saved, run me again (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: the same, as shells write it (128 + SIGINT)."""

FINISHING = "finishing this step, then saving"
"""What a run does between a signal and its end."""

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

    Each signal is acknowledged on standard error at once, by a thread of its own: Python runs
    signal handlers only between two calls, and a backward pass of a large batch is one call. A
    second signal ends the process at once: nothing is saved, and nothing is half-written, since
    a checkpoint appears by one rename. Outside the main thread, where Python allows no handlers,
    it does nothing.

    Args:
        doing: what is done before the process stops; empty: there is nothing to save, and
            `Stopped` is raised from wherever the main thread is. It changes as a job goes on.
        command: the command that goes on from there; empty: a call from Python.
    """

    def __init__(self, doing: str = FINISHING, *, command: Sequence[str] = ()) -> None:
        self.requested: int | None = None
        """Exit code to stop with; none while nobody asked."""
        self.doing = doing
        self.command = command
        self._requested_at = 0.0
        self._raised = False
        self._previous: dict[signal.Signals, object] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = os.pipe()
            for end in (self._reading, self._writing):
                os.set_blocking(end, False)
            # The kernel's signal becomes a byte at once, whatever the main thread is doing.
            self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            for number in _EXIT_CODES:
                self._previous[number] = signal.signal(number, self._receive)
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous.clear()
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._writing)  # ends the thread
        self._thread.join()
        os.close(self._reading)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, where alone an exception can be raised."""
        self._read()
        if self.requested is not None and not self.doing and not self._raised:
            self._raised = True
            raise self.stopped("stopped before training")

    def stopped(self, where: str) -> Stopped:
        """Give what to raise where a run stops, with the way to go on at its end."""
        assert self.requested is not None
        again = f"to go on: {shlex.join(self.command)}"
        if not self.command:
            again = "the same call goes on from there"
        return Stopped(f"{where}; {again}", exit_code=self.requested)

    def _watch(self) -> None:
        ready = select.poll()
        ready.register(self._reading, select.POLLIN)
        while ready.poll() and self._read():
            pass

    def _read(self) -> bool:
        """Take note of the signals that came, each once; return False after the last."""
        with self._lock:  # whoever reads a signal has answered it when the other gets here
            try:
                numbers = os.read(self._reading, 64)
            except BlockingIOError:  # the other thread was faster
                return True
            for number in numbers:
                if number in _EXIT_CODES:  # of other handlers in the process, there are bytes too
                    self._answer(signal.Signals(number))
            return bool(numbers)

    def _answer(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._requested_at = _EXIT_CODES[number], now
            again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
            _tell(f"{self.doing or 'stopping'}; {again} to stop now")
        elif now - self._requested_at > _SAME_WISH_S:
            os._exit(_EXIT_CODES[number])


def _tell(line: str) -> None:
    """Write a line to standard error past Python's buffer, which may be in use at this moment."""
    with suppress(OSError):
        # A terminal shows the keys that were pressed, and perhaps a live line.
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}mae: {line}\n".encode())


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
