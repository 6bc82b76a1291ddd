"""Faults that a process brings about in itself, at a chosen change to the disk or step."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = frozenset(("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def on_change(act: Callable[[str], None], *, under: str) -> None:
    """Call `act(path)` before each change to a path that contains `under`.

    A change is a file opened to be written, an fsync, a rename, a deletion, a new folder. What
    `act` raises fails the change.
    """
    busy = [False]

    def look(event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & _WRITING
        if busy[0] or not (event in CHANGES or writes):
            return
        paths = " ".join(str(value) for value in values if isinstance(value, str | os.PathLike))
        if under in paths:
            busy[0] = True
            try:
                act(paths)
            finally:
                busy[0] = False

    real = os.fsync

    def fsync(descriptor: int) -> None:
        look("os.rename", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        real(descriptor)

    sys.addaudithook(look)
    os.fsync = fsync


def die_at_change(number: int, *, under: str = "", after: str = "") -> None:
    """Kill this process before its n-th change, counted from the first that contains `after`."""
    counted = itertools.count()
    begun = [not after]

    def act(path: str) -> None:
        begun[0] |= bool(after) and after in path
        if begun[0] and next(counted) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_change(act, under=under)


def fail_changes(first: int, *, count: int = 1, code: int = errno.EIO) -> None:
    """Fail `count` changes to checkpoints, from the n-th on, with an error of the system."""
    counted = itertools.count()

    def act(path: str) -> None:
        if first <= next(counted) < first + count:
            raise OSError(code, os.strerror(code), path)

    on_change(act, under="checkpoints")


def fill_the_disk(disk: str, *, at_save: int, pages_left: int, seen: bool) -> None:
    """Fill a small disk when a save begins; free it again when the next one does.

    Args:
        disk: its mount point.
        at_save: number of the save, from 1.
        pages_left: pages of 4 KiB that are left for it.
        seen: whether the check before the save sees the true free space, or the disk fills after.
    """
    filler, real, saves = Path(disk, "filler"), shutil.disk_usage, [0]

    def usage(path: str | Path) -> Any:
        in_error = sys.exc_info()[0] is not None
        saves[0] += not in_error
        if saves[0] == at_save and not in_error:
            free = real(path).free - pages_left * 4096
            filler.write_bytes(bytes(max(0, free // 4096 * 4096)))
        elif saves[0] > at_save:
            filler.unlink(missing_ok=True)
        found = real(path)
        return found if seen or in_error else found._replace(free=2**40)

    shutil.disk_usage = usage


def not_finite_at(steps: frozenset[int], *, value: float = float("nan")) -> None:
    """Multiply the loss by NaN or infinity in these steps of the run, counted from 0."""
    from mae.train.step import OptimiserStep

    call, weighted = OptimiserStep.__call__, OptimiserStep._weighted_loss
    now = [0]

    def counted_call(self: OptimiserStep, state: Any, *values: Any, **rates: float) -> Any:
        now[0] = state.step
        return call(self, state, *values, **rates)

    def loss(self: OptimiserStep, *values: Any, **more: int) -> Any:
        found = weighted(self, *values, **more)
        return found * value if now[0] in steps else found

    OptimiserStep.__call__ = counted_call  # type: ignore[method-assign]
    OptimiserStep._weighted_loss = loss  # type: ignore[method-assign]


def draw_from_global_generators(seed: int) -> None:
    """Draw at random from the generators of torch, numpy and Python before each batch."""
    import numpy as np
    import torch

    from mae.data.batching import loader

    draws, real = random.Random(seed), loader.training_batch

    def batch(*values: Any, **more: Any) -> Any:
        for _ in range(draws.randrange(5)):
            torch.rand(3)
            np.random.rand(draws.randrange(9))
            random.random()
        torch.manual_seed(draws.randrange(99))
        return real(*values, **more)

    loader.training_batch = batch


def in_ranks(code: str, ranks: str) -> None:
    """Let the ranks that this process starts bring about a fault, such as `faults.log_ids(...)`.

    Args:
        code: Python that calls a function of this module.
        ranks: numbers, by commas.
    """
    root = Path(__file__).parents[2]
    injected = str(Path(__file__).with_name("injected"))
    os.environ |= {"MAE_CHAOS": code, "MAE_CHAOS_RANKS": ranks, "MAE_CHAOS_ROOT": str(root)}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (injected, os.getenv("PYTHONPATH"))))


def log_ids(folder: str) -> None:
    """Append step and ids of each batch that this process trains on to a file of its own."""
    from mae.train.step import OptimiserStep

    real, file = OptimiserStep.__call__, Path(folder, f"{os.getpid()}.jsonl")

    def call(self: OptimiserStep, state: Any, batch: Any, **rates: float) -> Any:
        with file.open("a") as opened:
            opened.write(json.dumps([state.step, batch.ids.tolist()]) + "\n")
        return real(self, state, batch, **rates)

    OptimiserStep.__call__ = call  # type: ignore[method-assign]


def together(*all_of: Callable[[], object]) -> None:
    """Bring about several faults."""
    for each in all_of:
        each()


def set_environment(**values: str) -> None:
    """Set environment variables of this process and of those that it starts."""
    os.environ |= values
