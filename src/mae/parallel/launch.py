"""Start the ranks of a job on this machine, pass signals on to them, and return how they ended.

torch's elastic launcher starts one process per rank. Each rank records its exit code in a folder
of the launcher: a rank that stopped with its state saved (75, 130) ends with 0 for the elastic
launcher, which otherwise ends the other ranks as soon as one has failed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mae.errors import SAME_REQUEST_S, STOP_CODES

GRACE_S = 30
"""Seconds between a signal and SIGKILL, as in torchrun; ranks save within 25."""
_RECORDS = "MAE_RANK_RECORDS"
_LOST = ".lost"
_WATCH_EVERY_S = 0.5
_PR_SET_PDEATHSIG = 1


class Outcome(NamedTuple):
    """How the ranks of a job ended."""

    exit_code: int
    message: str = ""
    """What to print; empty if rank 0 has printed its result or its error."""


def launch(
    words: Sequence[str], *, ranks: int, threads: int, program: Sequence[str] = ("-m", "mae")
) -> Outcome:
    """Run `mae WORDS` as several ranks on this machine, and wait for all of them.

    SIGTERM, SIGUSR1 and SIGINT are passed on to all ranks, which save and end; a second signal
    ends everything at once. No rank is restarted. Call it in the main thread of a process that
    does nothing else: it sets environment variables and signal handlers.

    Args:
        words: command line of every rank, without the name of the command.
        ranks: number of processes.
        threads: OMP_NUM_THREADS of a rank, unless that is set.
        program: arguments of Python before the words; it calls `start_rank` and `end_rank`.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _set_environment(threads)
    python = this_python()
    # The elastic launcher would handle SIGHUP even under nohup; torch 2.6 cannot leave that.
    can_leave = "signals_to_handle" in LaunchConfig.__dataclass_fields__
    signals = {"signals_to_handle": ""} if can_leave else {}
    with TemporaryDirectory(prefix="mae-ranks-") as folder, _without_logging():
        os.environ[_RECORDS] = folder
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=0,
            run_id=f"mae-{os.getpid()}-{uuid.uuid4().hex}",  # also see `has_own_launcher`
            rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            local_addr="localhost", logs_specs=DefaultLogsSpecs(log_dir=folder),
            **signals,  # type: ignore[arg-type]
        )  # fmt: skip
        failures: Mapping[int, Any] = {}
        with _signals_raise(SignalException) as received_at:
            try:
                elastic_launch(config, python[0])(*python[1:], *program, *words)
            except ChildFailedError as error:
                failures = error.failures
            except SignalException as stop:
                waited_s = time.monotonic() - received_at[0] if received_at else 0.0
                return _stopped(_Records.of(folder), stop.sigval, ranks=ranks, waited_s=waited_s)
        return _ended(_Records.of(folder), failures)


def this_python() -> list[str]:
    """Return the words that start this Python, to import what this process imports."""
    # -P: only if this process imports from the working directory, the other one does.
    return [sys.executable, *([] if sys.path[:1] in ([""], [os.getcwd()]) else ["-P"])]


def start_rank() -> None:
    """Prepare this process, a rank: it ends with its launcher, and takes SIGINT from now on."""
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_rank(exit_code: int) -> int:
    """Record the exit code of a rank for `launch`, and return the one to exit with."""
    try:
        _record("", f"{exit_code}")
    except (OSError, KeyError):  # a full disk, or torchrun: the exit code itself is all there is
        return exit_code
    return 0 if exit_code in STOP_CODES.values() else exit_code


def leave_to_launcher(message: str) -> bool:
    """Let `launch` print why this rank failed, unless it finds that another rank was killed.

    Returns:
        Whether it will; not under torchrun.
    """
    with suppress(OSError, KeyError):
        _record(_LOST, message)
        return True
    return False


def end_with_parent() -> None:
    """End this process by SIGKILL as soon as its parent has ended, however that happens.

    An orphan would wait for the other ranks, and rank 0 would hold the lock of the run.
    """
    by, _, rest = os.environ.get("TORCHELASTIC_RUN_ID", "").partition("-")
    # The parent that `launch` names may have ended while this process started.
    parent = int(rest.partition("-")[0]) if by == "mae" else os.getppid()
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _set_environment(threads: int) -> None:
    """Set what ranks inherit, except where the user has set it."""
    os.environ.setdefault("OMP_NUM_THREADS", f"{threads}")
    if sys.platform == "linux":  # the name of a machine may resolve to a network that is down
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # How a rank failed is printed in one line here, and its semaphores are nothing to report.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    ignored = [os.environ.get("PYTHONWARNINGS", ""), "ignore:resource_tracker:UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, ignored))


@contextmanager
def _without_logging() -> Iterator[None]:
    """Silence the elastic launcher, which logs tracebacks."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _signals_raise(exception: type[Exception]) -> Iterator[list[float]]:
    """Raise the elastic launcher's exception on the first signal; on a second, exit at once.

    The elastic launcher then passes the signal on to the ranks and waits for them. When this
    process exits, the kernel ends the ranks that are left, see `end_with_parent`.

    SIGINT is blocked in the main thread, and so in the ranks until they can handle it: they would
    print a traceback if it came while they start. Another thread receives it for this process.

    Yields:
        A list that will hold the time of the first signal.
    """
    received_at: list[float] = []

    def receive(number: int, _: object) -> None:
        name = signal.Signals(number)
        if not received_at:
            received_at.append(time.monotonic())
            again = "press Ctrl-C again" if name == signal.SIGINT else "signal again"
            with suppress(OSError):
                os.write(2, f"mae: stopping all ranks; {again} to stop now\n".encode())
            raise exception(f"got {name.name}", name)
        if time.monotonic() - received_at[0] > SAME_REQUEST_S:
            shutil.rmtree(os.environ[_RECORDS], ignore_errors=True)
            os._exit(STOP_CODES[name])

    done = threading.Event()
    receiver = threading.Thread(target=done.wait, name="signals", daemon=True)
    receiver.start()
    before = {number: signal.signal(number, receive) for number in STOP_CODES}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield received_at
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        done.set()
        receiver.join()


class _Records(NamedTuple):
    """What the ranks recorded before they ended, by rank."""

    codes: dict[int, int]
    lost: dict[int, str]
    """Message of a rank that failed because it lost another one."""

    @classmethod
    def of(cls, folder: str) -> _Records:
        files = {path.name: path.read_text() for path in Path(folder).iterdir() if path.is_file()}
        lost = {int(n.removesuffix(_LOST)): t for n, t in files.items() if n.endswith(_LOST)}
        codes = {int(n): int(t) for n, t in files.items() if n.isdecimal() and t.isdecimal()}
        return cls(codes, lost)

    def own_failure(self) -> int | None:
        """Return the exit code of the lowest rank that failed or stopped by itself."""
        own = {rank: code for rank, code in self.codes.items() if code and rank not in self.lost}
        return own[min(own)] if own else None


def _record(suffix: str, text: str) -> None:
    Path(os.environ[_RECORDS], os.environ["RANK"] + suffix).write_text(text)


def _ended(records: _Records, failures: Mapping[int, Any]) -> Outcome:
    """Judge ranks that ended without a signal to the launcher.

    Args:
        records: what they recorded.
        failures: torch's `ProcessFailure` by rank.
    """
    if (own := records.own_failure()) is not None:
        return Outcome(own)
    # All ranks agree on the end of the work before rank 0 prints; gloo may abort one after that.
    if records.codes.get(0) == 0:
        return Outcome(0)
    killed = {r: f for r, f in failures.items() if f.exitcode < 0 and r not in records.codes}
    for rank, failure in sorted(
        killed.items(), key=lambda item: item[1].exitcode == -signal.SIGTERM
    ):
        name = failure.signal_name()
        reason = " (often: out of memory)" if name == "SIGKILL" else ""
        end = f"rank {rank} (process {failure.pid}) was ended by {name}{reason}"
        return Outcome(1, f"ranks: {end}; the same command starts all ranks again")
    if records.lost:
        return Outcome(1, records.lost[min(records.lost)])
    return Outcome(next((failure.exitcode for _, failure in sorted(failures.items())), 0))


def _stopped(records: _Records, number: int, *, ranks: int, waited_s: float) -> Outcome:
    """Judge ranks that ended after a signal to the launcher."""
    if (own := records.own_failure()) is not None:
        return Outcome(own)
    if len(records.codes) == ranks and not records.lost:
        return Outcome(0)  # it came after the end of the work
    if waited_s > GRACE_S:
        late = ", ".join(f"{rank}" for rank in range(ranks) if rank not in records.codes)
        name = signal.Signals(number).name
        end = f"rank {late} had not ended {GRACE_S} s after {name} and was killed"
        return Outcome(1, f"ranks: {end}; the same command resumes from the last checkpoint")
    code = STOP_CODES.get(signal.Signals(number), 128 + number)
    return Outcome(code, "stopped")  # the signal itself ended a rank that had nothing to save
