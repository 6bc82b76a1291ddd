"""Kills at any moment: a run ends bit for bit where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mae.runs import checkpoint
from tests.chaos.bench import (
    CONTEXT,
    SAVE_EVERY,
    STEPS,
    Bench,
    is_finished,
    last_step,
    saved_step,
    wait_until,
)
from tests.chaos.faults import die_at_change
from tests.chaos.harness import ROOT, Trial
from tests.jobs.kill_storm import kill_after, kill_in_a_save
from tests.runs import killed_saver

SIGKILLED = -signal.SIGKILL


def lost_steps(out: Path) -> int:
    """Return the logged steps that no checkpoint holds."""
    return last_step(out) - saved_step(out) if not is_finished(out) else 0


def at_random_steps(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill one process at a random moment of its run, then give the same command again."""
    usual, moments = bench.whole().seconds, Counter[str]()
    for seed in range(count):
        draw, out = random.Random(seed), bench.fresh()
        while True:
            with bench.start(out) as job:
                killed = kill_after(job.process, draw.uniform(0, usual))
            if killed:
                break
            shutil.rmtree(out)  # it had ended before
        lost, early, late = lost_steps(out), saved_step(out) == 0, last_step(out) == STEPS
        moments.update(["before the first save"] * early + ["after the last step"] * late)
        yield Trial(bench.finish(out), lost)
        shutil.rmtree(out)
    bench.notes.append(", ".join(f"{n} {moment}" for moment, n in sorted(moments.items())))


def storm(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill one run again and again, every other time inside a save."""
    long = ("--steps", str(24 * count))
    draw, out = random.Random(0), bench.fresh()
    inside = 0
    for number in range(count):
        with bench.start(out, *long) as job:
            if number % 2:
                killed = kill_in_a_save(job.process, out, draw.randrange(4))
                inside += killed
            else:
                killed = kill_after(job.process, draw.uniform(0, 1.2))
        lost = lost_steps(out)
        fault = "" if killed else f"the run ended after {number} kills"
        if lost > SAVE_EVERY:
            fault = f"{lost} steps lost, saved every {SAVE_EVERY}"
        if number == count - 1:
            fault = fault or bench.finish(out, *long)
            bench.notes.append(f"{inside} inside a save")
        yield Trial(fault, lost)


def inside_a_save(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill a process that saves in a loop at random moments, by the script of the tests."""
    folder = bench.folder / "checkpoints"
    script = ROOT / "tests" / "runs" / "killed_saver.py"
    said = bench.run_python([str(script), str(folder), str(count), "2"], cwd=ROOT)
    last = said.splitlines()[-1]
    if not last.startswith("{"):
        yield Trial(last)
        return
    found = json.loads(last)
    bench.notes.append(f"{found['inside_a_save']} left something half-written")
    for _ in range(found["rounds"]):
        yield Trial()


def save_and_die(folder: str, acknowledged: str, number: int, after: str) -> None:
    """Save again and again in this process until it dies at a change to the disk."""
    state = killed_saver.load(Path(folder))
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    die_at_change(number, under=folder, after=after)
    while True:
        killed_saver.set_step(state, state.step + 1)
        extra = {"of": state.step}
        checkpoint.save_checkpoint(Path(folder), state, extra=extra, keep=2)
        os.pwrite(file, str(state.step).encode(), 0)


def load_and_die(folder: str, number: int) -> None:
    """Begin as a start does, which sweeps what is half-written, and die in it."""
    die_at_change(number, under=folder)
    killed_saver.load(Path(folder))


def forked(target: object, *values: object) -> int | None:
    """Run a function in a process of its own; return its exit code."""
    process = CONTEXT.Process(target=target, args=values)  # type: ignore[arg-type]
    process.start()
    process.join(60)
    return process.exitcode


def at_each_write(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill a save before its first change to the disk, its second, and so on to the purge."""
    folder, file = bench.folder / "checkpoints", bench.folder / "acknowledged"
    acknowledged = 0
    for number in range(count):
        file.write_text("0")
        code = forked(save_and_die, str(folder), str(file), number % 30, "")
        acknowledged = max(acknowledged, int(file.read_text() or 0))
        yield Trial(_not_as_saved(folder, code, acknowledged))
        acknowledged = _newest(folder)


def _not_as_saved(folder: Path, code: int | None, acknowledged: int) -> str:
    """Say what is wrong with the checkpoints that a killed process left."""
    if code != SIGKILLED:
        return f"the process ended with {code}, not by the kill"
    try:
        found = killed_saver.load(folder).step  # asserts that no tensor is torn
    except (AssertionError, ValueError) as error:
        return str(error)
    if not acknowledged <= found <= acknowledged + 1:
        return f"step {acknowledged} was acknowledged, {found} was found"
    left = [path.name for path in folder.glob(".*")]
    return f"left after the next start: {left}" if left else ""


def in_a_purge(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill the deletion of an old checkpoint, and every other time the sweep of the next start."""
    folder = bench.folder / "checkpoints"
    file = bench.folder / "acknowledged"
    forked(save_and_die, str(folder), str(file), 0, "step-00000006")  # five are saved
    for number in range(count):
        code = forked(save_and_die, str(folder), str(file), number % 6, ".del-")
        whole = [p for p in folder.glob("step-*") if not checkpoint._damage(p)]
        fault = "" if len(whole) >= 2 else f"{len(whole)} intact checkpoints are left of 2"
        if number % 2 and code == SIGKILLED and any(folder.glob(".*")):
            code = forked(load_and_die, str(folder), number // 2 % 4)
            whole = [p for p in folder.glob("step-*") if not checkpoint._damage(p)]
            fault = fault or ("" if len(whole) >= 2 else "the sweep deleted a checkpoint")
            code = SIGKILLED if code == 0 else code  # fewer files were left than that
        yield Trial(fault or _not_as_saved(folder, code, 0 if fault else _newest(folder)))


def _newest(folder: Path) -> int:
    return max((int(p.name.removeprefix("step-")) for p in folder.glob("step-*")), default=0)


POINTS = (1, 2, 4, 5, STEPS - 1, STEPS)
"""First step, mid-epoch, last step of an epoch, first of the next, last but one, last."""


def resume_points(bench: Bench, count: int) -> Iterator[Trial]:
    """Resume from each of six steps, by one process and by two reader processes."""
    every = ("--save-every-steps", "1", "--keep", str(STEPS + 1))
    out = bench.fresh()
    with bench.start(out, *every) as job:
        job.wait()
    whole = bench.whole()
    for number in range(count):
        workers = ("--workers", "2" if number % 2 else "0")
        point, copy = POINTS[number // 2], bench.fresh()
        shutil.copytree(out, copy)
        for path in (copy / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > point:
                shutil.rmtree(path)
        shutil.rmtree(copy / "weights")
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(record | {"finished": False}))
        fault = bench.finish(copy, *workers, of=whole)
        yield Trial(f"step {point}, {' '.join(workers)}: {fault}" if fault else "")
        shutil.rmtree(copy)


def stop_and_go(bench: Bench, count: int) -> Iterator[Trial]:
    """Stop a run by SIGTERM and resume it, again and again; the log has each step once."""
    long = ("--steps", str(12 * count))
    out, draw = bench.fresh(), random.Random(0)
    for number in range(count):
        before = last_step(out)
        with bench.start(out, *long) as job:
            wait_until(partial(_has_moved, out, before, job.process), seconds=30)
            job.process.join(draw.uniform(0, 0.1))
            job.send(signal.SIGTERM)
            code = job.wait(30)
        fault = "" if code == 75 else f"exit {code}: {job.last_line}"
        if number == count - 1:
            fault = fault or bench.finish(out, *long)
        yield Trial(fault)


def _has_moved(out: Path, before: int, process: object) -> bool:
    return last_step(out) > before or not process.is_alive()  # type: ignore[attr-defined]
