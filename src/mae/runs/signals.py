"""Stop signals of a job and the lock file of a run directory."""

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

from mae.errors import SAME_REQUEST_S, STOP_CODES, ConfigError, Stopped
from mae.parallel.processes import has_own_launcher, this_process

FINISHING = "finishing this step, then saving"
"""Message for what a run does between a signal and its exit."""

_OWNER_READS, _OWNER_EVERY_S = 40, 0.05


class StopSignal:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a stop request that the loop checks between steps.

    A separate thread acknowledges each signal on stderr at once, in rank 0: Python runs signal
    handlers only between two calls, and the backward pass of a large batch is one call. A second
    signal ends the process at once (with --ranks, the launcher does): nothing is saved, and nothing
    is half-written, since a checkpoint appears by one rename. Outside the main thread, where Python
    allows no signal handlers, this does nothing.

    Args:
        doing: message for what happens before the process stops. If empty, there is nothing to
            save, and `Stopped` is raised at the current point of the main thread. It changes
            during a job.
        command: the command that resumes the job; empty for a call from Python.
    """

    def __init__(self, doing: str = FINISHING, *, command: Sequence[str] = ()) -> None:
        self.requested: int | None = None
        """Exit code of the requested stop; None if no stop was requested."""
        self.doing = doing
        self.command = command
        # With --ranks, the process that started the ranks prints, and a second signal to it ends
        # them all. A rank may get its own signal and, much later, the one that is passed on.
        self._has_launcher = has_own_launcher()
        self._prints = this_process().is_main_process and not self._has_launcher
        self._requested_at = 0.0
        self._raised = False
        self._previous: dict[signal.Signals, object] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = os.pipe()
            for end in (self._reading, self._writing):
                os.set_blocking(end, False)
            # The signal is written to the pipe at once, whatever the main thread is doing.
            self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            for number in STOP_CODES:
                self._previous[number] = signal.signal(number, self._receive)
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            # None means a handler that was not installed from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous.clear()
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._writing)  # ends the thread
        self._thread.join()
        os.close(self._reading)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, the only one that can raise `Stopped` in the job."""
        self._read()
        if self.requested is not None and not self.doing and not self._raised:
            self._raised = True
            raise self.stopped("stopped before training")

    def stopped(self, where: str) -> Stopped:
        """Return the exception for a stopped run; its message ends with how to resume."""
        assert self.requested is not None
        again = f"to resume: {shlex.join(self.command)}"
        if not self.command:
            again = "the same call resumes it"
        return Stopped(f"{where}; {again}", exit_code=self.requested)

    def _watch(self) -> None:
        ready = select.poll()
        ready.register(self._reading, select.POLLIN)
        while ready.poll() and self._read():
            pass

    def _read(self) -> bool:
        """Handle each pending signal once; return False when the pipe is closed."""
        with self._lock:  # a signal read by one thread is handled before the other continues
            try:
                numbers = os.read(self._reading, 64)
            except BlockingIOError:  # the other thread was faster
                return True
            for number in numbers:
                if number in STOP_CODES:  # the pipe also receives signals of other handlers
                    self._answer(signal.Signals(number))
            return bool(numbers)

    def _answer(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._requested_at = STOP_CODES[number], now
            again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
            if self._prints:
                _print(f"{self.doing or 'stopping'}; {again} to stop now")
        elif not self._has_launcher and now - self._requested_at > SAME_REQUEST_S:
            os._exit(STOP_CODES[number])


def _print(line: str) -> None:
    """Write a line to stderr, bypassing Python's buffer, which may be in use."""
    with suppress(OSError):
        # The terminal's current line may show ^C or the live progress line.
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}mae: {line}\n".encode())


class RunLock:
    """Exclusive lock of a run directory; the kernel releases it however the process ends.

    Args:
        path: the lock file, in an existing folder. The file remains after the lock is released:
            deleting it would let a third process lock a new file while a second waits on the
            old one.

    Raises:
        ConfigError: on entry, if another process holds the lock; names its host and pid.
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
                f"{self.path.parent}: in use by {self._owner()}; wait, or choose another --out"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be locked: {error.strerror}; choose an --out that you may "
                "write to, on a file system with locks"
            ) from error
        # The content is used only in the message above; a full disk is reported elsewhere.
        with suppress(OSError):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _owner(self) -> str:
        """Return host and process of the owner, which writes them just after it takes the lock."""
        for _ in range(_OWNER_READS):
            if (text := self.path.read_text()) and not _has_ended(text):
                return text
            time.sleep(_OWNER_EVERY_S)
        return "another process"


def _has_ended(owner: str) -> bool:
    """Return whether a lock file still names a former owner: a process of this host, now gone."""
    number, _, host = owner.removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False
