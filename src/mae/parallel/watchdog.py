"""Notice a rank that hangs or is gone, print the stacks of all ranks, and name it.

A thread of each rank writes a heartbeat to the store of the job: a counter, and
how many collectives it has begun. A rank whose counter stands still is stopped or gone. If
all are alive, the one that has begun the fewest collectives is the one that the others wait for.

The thread, not an exception, ends a rank that hangs: the main thread may never come back from what
it waits for. Nothing is lost that a SIGKILL would not lose, since files appear by one rename.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mae.errors import ConfigError
from mae.parallel.launch import end_rank

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_DEFAULT_S = 600.0
_VARIABLE = "MAE_RANK_TIMEOUT_S"
_BEAT_S = 0.5
_SAMPLED = 4  # beats after which a rank that wrote none is not alive


def hang_timeout_s() -> float:
    """Return after how many seconds without a step a rank counts as hung.

    Raises:
        ConfigError: if MAE_RANK_TIMEOUT_S, which overrides 600 s, is not a number above 0.
    """
    text = os.environ.get(_VARIABLE, "") or str(_DEFAULT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{_VARIABLE}: expected seconds above 0, got {text!r}")
    return seconds


class _Beat(NamedTuple):
    alive: int = -1
    """Increases as long as the rank is alive; -1: it has not written yet."""
    collectives: int = -1
    """Begun so far."""
    pid: int = -1


class Watchdog:
    """Heartbeat of this rank, and the check that its training advances.

    Args:
        rank: number of this process.
        world_size: number of all.
        store: key-value store of the job, with a connection that nothing else uses.
        timeout_s: seconds without a step after which the job hangs. It counts from the first
            step that is done on: compilation and the first reads may take longer.
    """

    def __init__(self, rank: int, world_size: int, store: Store, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._rank = rank
        self._ranks = range(world_size)
        self._store = store
        self._interval = min(_BEAT_S, timeout_s / 10)
        self._count = 0
        self._step: int | None = None
        self._answers = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def advance(self, step: int) -> None:
        """Note that a step is done; the next must be done within the time-out."""
        self._step = step

    def pause(self) -> None:
        """Stop expecting steps: what follows has no steps, and may take long."""
        self._step = None

    def missing(self) -> list[int]:
        """Return the ranks that are stopped or gone, else those that the others wait for.

        It takes a few heartbeats. Empty if none can be told from the others.
        """
        before = self._read()
        for _ in range(_SAMPLED):
            self._ended.wait(self._interval)
            self._write()
        now = self._read()
        # Without an answer, the process that holds the store is the one: rank 0 as a rule.
        if before is None or now is None:
            return [0] if self._rank else []
        others = [rank for rank in self._ranks if rank != self._rank]
        if still := [rank for rank in others if now[rank].alive == before[rank].alive]:
            return still
        most = max(beat.collectives for beat in now)
        return [rank for rank in self._ranks if now[rank].collectives < most]

    def _watch(self) -> None:
        # In beats, not by a clock: a job may be suspended as a whole, and go on hours later.
        waited, seen = 0, None
        while not self._ended.wait(self._interval):
            self._write()
            waited, seen = (waited + 1 if self._step == seen else 0), self._step
            if seen is not None and waited * self._interval > self.timeout_s:
                self._end(seen)

    def _end(self, step: int) -> None:
        """Print the stacks of this rank and, on the lowest rank left, which rank hung; exit."""
        _print(f"rank {self._rank}: no step in {self.timeout_s:g} s; its threads:")
        faulthandler.dump_traceback(2, all_threads=True)
        missing = self.missing()
        if self._rank == next((rank for rank in self._ranks if rank not in missing), 0):
            who = f"rank {', '.join(map(str, missing))}" if missing else "a rank"
            _print(
                f"ranks: {who} hung: step {step + 1} was not done in "
                f"{self.timeout_s:g} s; the stacks above show where; give the same command again"
            )
            end_rank(1)  # `launch` then knows that the reason is printed
        else:
            for _ in range(2 * _SAMPLED):  # until that rank has sampled this one, and printed
                time.sleep(self._interval)
                self._write()
        beats = self._read() or []
        for beat in (beats[rank] for rank in missing if beats and rank != self._rank):
            _kill_sibling(beat.pid)
        os._exit(1)

    def _write(self) -> None:
        # Python's threads stand still while C code holds the interpreter; this timer does not.
        faulthandler.dump_traceback_later(self.timeout_s)
        self._count += 1
        beat = _Beat(self._count, _collectives_begun(), os.getpid())
        with suppress(RuntimeError):  # the store may be gone while a job ends
            if self._answers:
                self._store.set(f"beat/{self._rank}", " ".join(map(str, beat)))

    def _read(self) -> list[_Beat] | None:
        """Read the heartbeats of all ranks; None if the store does not answer."""
        found: list[_Beat] = []

        def read() -> None:
            with suppress(RuntimeError):
                for rank in self._ranks:
                    key = f"beat/{rank}"
                    text = self._store.get(key) if self._store.check([key]) else b""
                    found.append(_Beat(*map(int, text.split())))

        # A read has no time-out if the process that holds the store is stopped.
        thread = threading.Thread(target=read, daemon=True)
        if self._answers:
            thread.start()
            thread.join(_SAMPLED * self._interval)
        self._answers = len(found) == len(self._ranks)
        return found if self._answers else None


def _collectives_begun() -> int:
    """Count the collectives that this rank has begun, by gloo and by NCCL."""
    from torch.distributed.distributed_c10d import _get_default_group

    try:
        group: Any = _get_default_group()
        backends = [group._get_backend(device) for device in group._device_types]
        return sum(backend._get_sequence_number_for_group() for backend in backends)
    except (RuntimeError, ValueError):  # the group is destroyed while a job ends
        return -1


def _kill_sibling(pid: int) -> None:
    """Kill a stopped rank of the same launcher, which would get no other signal.

    Other launchers, and ranks of other machines, are not touched.
    """
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        if int(stat.rpartition(")")[2].split()[1]) == os.getppid() > 1:
            os.kill(pid, signal.SIGKILL)


def _print(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"mae: {line}\n".encode())
