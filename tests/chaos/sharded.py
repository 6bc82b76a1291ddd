"""Checkpoints that two ranks write together, and those that a thread writes beside the training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from tests.chaos import kills, stops, storage
from tests.chaos.bench import Bench, Job
from tests.chaos.harness import ROOT, Trial
from tests.runs import killed_saver
from tests.runs.thread_ranks import save_halves

SCRIPT = ("-m", "tests.runs.killed_sharded_saver")
PAGES = (3, 100, 180, 182)
"""Of 4 KiB, left when the disk fills: for no shard, for one, for both, and but for the manifest."""


class AsyncBench(Bench):
    """A bench whose runs save in a thread."""

    def start(self, out: Path, *more: str, fault: Callable[[], object] | None = None) -> Job:
        """See `Bench.start`."""
        return super().start(out, *more, "--async-save", fault=fault)


def async_saves(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill, stop and fill the disk of runs that save in a thread, as of those that do not."""
    folder = bench.folder / "async"
    folder.mkdir()
    own = AsyncBench(folder)
    synchronous = bench.whole()
    for test, trials in (
        (kills.at_random_steps, count * 2 // 5),
        (stops.at_any_moment, count * 2 // 5),
        (storage.disk_full, count // 5),
    ):
        for trial in test(own, trials):
            fault = trial.fault and f"{test.__name__}: {trial.fault}"
            if own.whole().digest != synchronous.digest:
                fault = "a run ends otherwise with --async-save"
            yield Trial(fault)
    own.close()


def kills_inside_a_save(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill a rank before its n-th change to the disk, or both ranks at a random moment."""
    folder = bench.folder / "checkpoints"
    said = bench.run_python([*SCRIPT, "kill", str(folder), str(count), "5"], cwd=ROOT)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if len(lines) < count:
        yield Trial(f"{len(lines)} rounds: {said[-300:]}")
    yield from (Trial(line["fault"]) for line in lines)
    bench.notes.append(f"{sum(line['inside'] for line in lines)} left something half-written")


def disk_full(bench: Bench, count: int) -> Iterator[Trial]:
    """Fill the disk during a save of two ranks, at once or in a thread; free it before the next."""
    for what, pages in [*product(("fill", "fill-async"), PAGES)][:count]:
        with storage.small_disk(bench, 16) as disk:
            words = [*SCRIPT, what, str(disk / "checkpoints"), str(pages)]
            said = bench.run_python(words, cwd=ROOT).splitlines()[-1]
        fault = said
        if said.startswith("{"):
            found = json.loads(said)
            lines = found["said"]  # of each rank
            one = len(lines) == 2 and lines[0] == lines[1] and len(lines[0]) == 1
            line = lines[0][0] if one else f"the ranks say {lines}"
            words = ["not saved", "No space left", "MB are free"]
            words += ["training continues"] * (what == "fill-async")
            fault = "" if one and all(word in line for word in words) else line
            if found["left"] != ["step-00000001", "step-00000003"]:
                fault = f"left: {found['left']}"
        yield Trial(f"{what}, {pages} pages left: {fault}" if fault else "")


def order_of_writes(bench: Bench, count: int) -> Iterator[Trial]:
    """Record what was on the disk at each rename of a save by two ranks."""
    folder, state = bench.folder / "run" / "checkpoints", killed_saver.fresh_state()
    for step in range(1, count + 1):
        killed_saver.set_step(state, step)
        with storage.WriteOrder(files=5) as order:
            saved = save_halves(folder, state, keep=2)
        fault = order.fault
        if saved != [folder / f"step-{step:08d}"] * 2:
            fault = f"{saved[0]}"
        elif order.folders[1:2] != [str(folder)]:
            fault = fault or "its name was not on the disk when the save returned"
        yield Trial(fault)
