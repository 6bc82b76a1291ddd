"""Signals, locks and exit codes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from mae.errors import ConfigError
from mae.runs import checkpoint
from mae.runs.signals import RunLock
from tests.chaos.bench import (
    STEPS,
    Bench,
    Job,
    is_finished,
    last_step,
    rows,
    saved_step,
    wait_until,
)
from tests.chaos.harness import Trial, readers_of

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
_STOPPED = re.compile(r"mae: stopped at step ([\d,]+) of [\d,]+; to resume: mae pretrain .*")
_MOST_SECONDS = 10.0


def at_any_moment(bench: Bench, count: int) -> Iterator[Trial]:
    """Send SIGTERM, SIGUSR1 or SIGINT at start-up, in a step, in a save and near the end."""
    for seed in range(count):
        draw, out, number = random.Random(seed), bench.fresh(), [*CODES][seed % 3]
        for _ in range(20):
            with bench.start(out) as job:
                _wait_for_moment(job, out, seed // 3 % 5, draw)
                sent = time.monotonic()
                job.send(number)
                code = job.wait(30)
                took = time.monotonic() - sent
                fault = _not_stopped(job, out, code, CODES[number], took)
            if not (code == 0 and is_finished(out)):
                break
            shutil.rmtree(out)  # the signal came after the end
        yield Trial(fault or bench.finish(out), took)
        shutil.rmtree(out, ignore_errors=True)


def _wait_for_moment(job: Job, out: Path, kind: int, draw: random.Random) -> None:
    ended = job.process.exitcode
    if kind == 0:  # before and around the first step
        wait_until(lambda: job.has_begun or not job.process.is_alive())
        job.process.join(draw.uniform(0, 0.4))
    elif kind == 1:
        wait_until(lambda: last_step(out) > 0 or not job.process.is_alive())
    elif kind == 2:
        step = draw.randrange(2, STEPS - 4)
        wait_until(lambda: last_step(out) >= step or not job.process.is_alive())
        job.process.join(draw.uniform(0, 0.02))
    elif kind == 3:
        saves = draw.randrange(1, 8)
        wait_until(lambda: saved_step(out) >= 4 * saves or not job.process.is_alive())
        wait_until(lambda: _is_saving(out) or not job.process.is_alive())
    else:
        wait_until(lambda: last_step(out) >= STEPS - 2 or not job.process.is_alive())
    assert ended is None


def _is_saving(out: Path) -> bool:
    return any((out / "checkpoints").glob(".tmp-*"))


def _not_stopped(job: Job, out: Path, code: int | None, expected: int, took: float) -> str:
    """Say what is wrong with a run that a signal stopped; empty if nothing is."""
    line = job.last_line
    if code is not None and code < 0 and not job.said:
        return ""  # before there is a handler, and anything to save
    if code != expected or took > _MOST_SECONDS:
        return f"exit {code} {took:.1f} s after the signal, expected {expected}: {line}"
    if job.orphans():
        return "processes of the job still run"
    if "stopped before training" in line:
        return ""
    stopped = _STOPPED.fullmatch(line)
    if stopped is None:
        return f"its last line: {line}"
    step = int(stopped[1].replace(",", ""))
    path = out / "checkpoints" / f"step-{step:08d}"
    if last_step(out) != step or not path.is_dir() or checkpoint._damage(path):
        return f"stopped at step {step}, saved {saved_step(out)}, logged {last_step(out)}"
    state = json.loads((out / "run.json").read_text()).get("state")
    return "" if state == "stopped" else f"run.json says {state}"


def whole_group(bench: Bench, count: int) -> Iterator[Trial]:
    """Send SIGTERM to a run and its four reader processes at once: the state is saved."""
    whole = bench.whole()
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        step = draw.randrange(1, STEPS - 10)
        with bench.start(out, "--workers", "4") as job:
            moved = wait_until(partial(_reached, out, step, job), seconds=100)
            readers = len(readers_of(job.pid))
            sent = time.monotonic()
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGTERM)
            code = job.wait(30)
            took = time.monotonic() - sent
            fault = _not_stopped(job, out, code, 75, took)
        if not moved or readers < 4:
            fault = fault or f"{readers} readers at step {last_step(out)}"
        yield Trial(fault or bench.finish(out, of=whole), took)
        shutil.rmtree(out)


def _reached(out: Path, step: int, job: Job) -> bool:
    return last_step(out) >= step or not job.process.is_alive()


def while_data_waits(bench: Bench, count: int) -> Iterator[Trial]:
    """Freeze the reader process, then send SIGTERM: the state is saved nevertheless."""
    for _ in range(count):
        out = bench.fresh()
        with bench.start(out, "--workers", "1", "--steps", "4000") as job:
            wait_until(lambda out=out, job=job: _reached(out, 1, job), seconds=60)
            for child in readers_of(job.pid):
                os.kill(child, signal.SIGSTOP)
            before = -1
            while before != last_step(out):  # the batches made ahead
                before = last_step(out)
                time.sleep(0.5)
            sent = time.monotonic()
            job.send(signal.SIGTERM)
            code = job.wait(20)
            took = time.monotonic() - sent
            yield Trial(_not_stopped(job, out, code, 75, took), took)


def second_signal(bench: Bench, count: int) -> Iterator[Trial]:
    """Send a second signal while the first is being obeyed: exit within 2 s, nothing torn."""
    for seed in range(count):
        out, number = bench.fresh(), [*CODES][seed % 3]
        with bench.start(out, "--batch", "64", "--micro-batch", "4", "--steps", "400") as job:
            wait_until(lambda out=out: saved_step(out) > 0)
            job.send(signal.SIGSTOP)  # so that it obeys neither before both are sent
            job.send(number)
            job.send(signal.SIGCONT)
            time.sleep(0.3)
            ended = job.process.exitcode is not None
            sent = time.monotonic()
            job.send(number)
            code = job.wait(20)
            took = time.monotonic() - sent
        damaged = [p.name for p in out.glob("checkpoints/step-*") if checkpoint._damage(p)]
        fault = "" if code == CODES[number] and took < 2 else f"exit {code} after {took:.1f} s"
        if damaged or "Traceback" in job.said:
            fault = f"damaged: {damaged}; {job.said}"
        yield Trial(fault, 0.0 if ended else took)
        shutil.rmtree(out)


def races(bench: Bench, count: int) -> Iterator[Trial]:
    """Start two runs in one folder at once: one runs, the other exits with 2; kill -9 frees."""
    for _ in range(count):
        out = bench.fresh()
        more = ("--steps", "100000", "--quiet")
        with bench.start(out, *more) as a, bench.start(out, *more) as b:
            began = time.monotonic()
            wait_until(lambda a=a, b=b: not (a.process.is_alive() and b.process.is_alive()))
            took = time.monotonic() - began
            winner, loser = (a, b) if a.process.is_alive() else (b, a)
            code = loser.wait(5)
            said = a.said + b.said
            refused = f"in use by process {winner.pid} on {socket.gethostname()}"
            fault = ""
            if code != 2 or took > 5 or said.count(refused) != 1:
                fault = f"exit {code} after {took:.1f} s: {said}"
            elif not wait_until(lambda out=out: last_step(out) > 1) or len(set(_starts(out))) != 1:
                fault = "the winner does not run"
            winner.kill()
            fault = fault or _still_locked(out)
        yield Trial(fault, took)
        shutil.rmtree(out, ignore_errors=True)


def _starts(out: Path) -> list[int]:
    return [row["step"] for row in rows(out) if row["step"] == 1]


def _still_locked(out: Path) -> str:
    try:
        with RunLock(out / "lock"):
            return ""
    except ConfigError as error:
        return f"after kill -9 of its owner: {error}"
