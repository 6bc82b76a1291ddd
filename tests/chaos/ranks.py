"""The same faults on several ranks of one machine: every rank ends, and the run resumes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.chaos import faults
from tests.chaos.bench import (
    IMAGES,
    STEPS,
    Bench,
    End,
    Job,
    differs,
    is_finished,
    last_step,
    losses,
    rows,
    saved_step,
    wait_until,
)
from tests.chaos.harness import NotBuilt, Trial

TWO = ("--ranks", "2")
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
PER_EPOCH = IMAGES // 16
_MOST_SECONDS = 10.0


def ranks_of(out: Path) -> dict[int, int]:
    """Return the processes that train in a run folder, by rank; the launcher is rank -1."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(out) not in words or b"Z" in _state(folder):
                continue
            names = (folder / "environ").read_bytes().split(b"\0")
            rank = next((n.partition(b"=")[2] for n in names if n.startswith(b"RANK=")), b"-1")
            found[int(rank)] = int(folder.name)
    return found


def _state(folder: Path) -> bytes:
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()[0]


def seconds_until_gone(out: Path) -> float:
    """Wait until no process of a run is left; return how long that took."""
    began = time.monotonic()
    gone = wait_until(lambda: not ranks_of(out), seconds=40)
    if not gone:
        for pid in ranks_of(out).values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return time.monotonic() - began


def baseline(bench: Bench, *more: str) -> End:
    """Return the end of an undisturbed run on two ranks."""
    try:
        return bench.whole(*TWO, *more)
    except RuntimeError as error:
        if "ended with 2" in str(error):
            raise NotBuilt(f"not built: {error}") from error
        raise


def _reached(out: Path, step: int, job: Job) -> bool:
    return last_step(out) >= step or not job.process.is_alive()


def _started(bench: Bench, out: Path, step: int, *more: str, fault: object = None) -> Job:
    """Start two ranks, and return when a step is done."""
    job = bench.start(out, *TWO, *more, fault=fault)  # type: ignore[arg-type]
    wait_until(partial(_reached, out, step, job), seconds=90)
    return job


def kills(bench: Bench, count: int, *more: str) -> Iterator[Trial]:
    """Kill rank 0, rank 1 or the launcher at a random step; give the same command again."""
    whole = baseline(bench, *more)
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        victim, step = seed % 3 - 1, draw.randrange(1, STEPS - 6)
        with _started(bench, out, step, *more) as job:
            job.process.join(draw.uniform(0, 0.05))
            pid = job.pid if victim < 0 else ranks_of(out).get(victim)
            if pid is None:
                yield Trial(f"no rank {victim} at step {last_step(out)}")
                continue
            os.kill(pid, signal.SIGKILL)
            code, took = job.wait(60), seconds_until_gone(out)
        fault = ""
        if took > _MOST_SECONDS:
            fault = f"processes were left {took:.1f} s after the kill"
        elif victim >= 0 and (code != 1 or f"rank {victim}" not in job.last_line):
            fault = f"exit {code}: {job.last_line}"
        yield Trial(fault or bench.finish(out, *TWO, *more, of=whole), took)
        shutil.rmtree(out)


def sharded_kills(bench: Bench, count: int) -> Iterator[Trial]:
    """The same where each rank holds a part of the parameters."""
    yield from kills(bench, count, "--strategy", "fsdp")


def killed_launcher(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill the launcher while ranks start, train and save: no rank outlives it."""
    whole = baseline(bench)
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        with bench.start(out, *TWO) as job:
            wait_until(
                lambda out=out, job=job: len(ranks_of(out)) > 2 or not job.process.is_alive()
            )
            if seed % 2:
                wait_until(partial(_reached, out, draw.randrange(30), job), seconds=60)
            job.process.join(draw.uniform(0, 1))
            job.kill()
            took = seconds_until_gone(out)
        fault = f"ranks were left {took:.1f} s after the kill" if took > 5 else ""
        yield Trial(fault or bench.finish(out, *TWO, of=whole), took)


def signals(bench: Bench, count: int) -> Iterator[Trial]:
    """Signal the launcher, every rank or one rank alone: all stop at one step, saved."""
    whole = baseline(bench)
    for seed in range(count):
        out, draw, number = bench.fresh(), random.Random(seed), [*CODES][seed % 3]
        with _started(bench, out, draw.randrange(1, STEPS - 10)) as job:
            ranks = ranks_of(out)
            targets = ([job.pid], [ranks.get(1, 0)], [ranks.get(0, 0)], [job.pid, *ranks.values()])
            sent = time.monotonic()
            for pid in dict.fromkeys(targets[seed // 3 % 4]):
                os.kill(pid, number)
            code = job.wait(40)
            took = time.monotonic() - sent + seconds_until_gone(out)
        fault = ""
        if code != CODES[number] or took > _MOST_SECONDS:
            fault = f"exit {code} after {took:.1f} s: {job.last_line}"
        elif f"stopped at step {saved_step(out)} of" not in job.said:
            fault = f"step {saved_step(out)} is saved: {job.last_line}"
        elif json.loads((out / "run.json").read_text()).get("state") != "stopped":
            fault = "run.json does not say that it stopped"
        elif "Traceback" in job.said:
            fault = f"it printed a traceback: {job.last_line}"
        yield Trial(fault or bench.finish(out, *TWO, of=whole), took)
        shutil.rmtree(out)


def second_signal(bench: Bench, count: int) -> Iterator[Trial]:
    """Signal the launcher twice: all ranks end within 2 s, whatever they do."""
    baseline(bench)
    for seed in range(count):
        out, number = bench.fresh(), [*CODES][seed % 3]
        more = ("--batch", "64", "--micro-batch", "2", "--model.depth", "8")
        with _started(bench, out, 1, *more) as job:
            for pid in ranks_of(out).values():
                os.kill(pid, signal.SIGSTOP)  # so that nobody obeys the first
            os.kill(job.pid, signal.SIGCONT)
            job.send(number)
            time.sleep(0.5)
            sent = time.monotonic()
            job.send(number)
            code = job.wait(20)
            seconds_until_gone(out)
            took = time.monotonic() - sent
        right = code == CODES[number] and took < 2
        yield Trial("" if right else f"exit {code}, gone after {took:.1f} s", took)


def non_finite_on_one(bench: Bench, count: int) -> Iterator[Trial]:
    """Make the loss NaN or infinite on rank 1 alone: no rank moves a parameter in that step."""
    baseline(bench)
    for seed in range(count):
        out, step = bench.fresh(), random.Random(seed).randrange(2, 30)
        value = ("nan", "inf")[seed % 2]
        code = f"faults.not_finite_at(frozenset({{{step}}}), value=float('{value}'))"
        every = ("--save-every-steps", "1", "--keep", "50")
        with bench.start(out, *TWO, *every, fault=partial(faults.in_ranks, code, "1")) as job:
            ended = job.wait(90)
        before, after = (_model(out, number) for number in (step, step + 1))
        skipped = [row["step"] for row in rows(out) if "skipped" in row]
        fault = ""
        if ended != 0 or skipped != [step + 1]:
            fault = f"exit {ended}, skipped {skipped}, expected {step + 1}: {job.last_line}"
        elif before != after or _model(out, step + 2) == after:
            fault = f"the parameters moved in step {step + 1}, or not in the next"
        yield Trial(fault)
        shutil.rmtree(out)


def _model(out: Path, step: int) -> bytes:
    return (out / "checkpoints" / f"step-{step:08d}" / "model.safetensors").read_bytes()


def five_non_finite_on_one(bench: Bench, count: int) -> Iterator[Trial]:
    """Make five steps NaN on rank 1 alone: both ranks end with 1, in one line."""
    baseline(bench)
    for seed in range(count):
        out, first = bench.fresh(), random.Random(seed).randrange(2, 30)
        code = f"faults.not_finite_at(frozenset(range({first}, {first + 5})))"
        with bench.start(out, *TWO, fault=partial(faults.in_ranks, code, "1")) as job:
            ended = job.wait(90)
            took = seconds_until_gone(out)
        said = job.said.count("in 5 steps in a row")
        right = ended == 1 and said == 1 and "Traceback" not in job.said
        yield Trial("" if right else f"exit {ended}: {job.said[-400:]}", took)


def equal_to_accumulation(bench: Bench, count: int) -> Iterator[Trial]:
    """Train on two ranks, and on one with two micro-batches: the same, bit for bit."""
    whole = baseline(bench)
    for _ in range(count):
        out, more = bench.fresh(), ("--micro-batch", "8")
        with bench.start(out, *more) as job:
            job.wait()
        yield Trial(differs(out, whole))


def other_rank_counts(bench: Bench, count: int) -> Iterator[Trial]:
    """Train on 3 and 4 ranks: losses and parameters within 1e-4, relative."""
    baseline(bench)
    for number in range(count):
        out, one = bench.fresh(), bench.fresh()
        for path, ranks in ((out, str(3 + number)), (one, "1")):
            with bench.start(path, "--ranks", ranks) as job:
                code = job.wait()
            if code != 0:
                yield Trial(f"{ranks} ranks: exit {code}: {job.last_line}")
                break
        else:
            loss, parameters = _distance(out, one)
            bench.notes.append(f"{3 + number} ranks: {loss:.1e} loss, {parameters:.1e} parameters")
            far = max(loss, parameters)
            yield Trial("" if far < 1e-4 else f"{3 + number} ranks: {far:.1e}")


def _distance(a: Path, b: Path) -> tuple[float, float]:
    """Return the largest relative distance of two runs' losses, and that of their parameters."""
    pairs = zip(losses(a), losses(b), strict=True)
    loss = max(abs(x - y) / abs(y) for x, y in pairs)
    files = [path / "weights" / "model.safetensors" for path in (a, b)]
    x, y = (torch.cat([t.flatten() for t in load_file(f).values()]) for f in files)
    return loss, float((x - y).norm() / y.norm())


WORLDS = (2, 1, 3, 2, 4)


def changing_ranks(bench: Bench, count: int) -> Iterator[Trial]:
    """Go on with 2, 1, 3, 2 and 4 ranks, killed in between: each image once an epoch."""
    baseline(bench)
    whole = bench.whole()
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        attempts = []
        for number, ranks in enumerate(WORLDS):
            folder = out.with_name(f"{out.name}-ids-{number}")
            folder.mkdir()
            attempts.append(folder)
            log = partial(faults.in_ranks, f"faults.log_ids({str(folder)!r})", "0,1,2,3")
            step = min(STEPS, saved_step(out) + draw.randrange(4, 9))
            # One rank is this process itself, without a launcher.
            log = partial(faults.log_ids, str(folder)) if ranks == 1 else log
            with bench.start(out, "--ranks", str(ranks), fault=log) as job:
                if number < len(WORLDS) - 1:
                    wait_until(partial(_reached, out, step, job), seconds=90)
                    pid = random.Random(seed).choice([*ranks_of(out).values(), job.pid])
                    os.kill(pid, signal.SIGKILL)
                code = job.wait()
                seconds_until_gone(out)
        fault = "" if is_finished(out) else f"exit {code}: {job.last_line}"
        yield Trial(fault or _not_once(attempts) or _far(out, whole))


def _not_once(attempts: Sequence[Path]) -> str:
    """Say which images an epoch did not see once, by the last attempt at each of its steps."""
    seen: dict[int, list[int]] = {}
    for folder in attempts:
        mine: dict[int, list[int]] = {}
        for file in folder.glob("*.jsonl"):
            for line in file.read_text().splitlines():
                step, ids = json.loads(line)
                mine.setdefault(step, []).extend(ids)
        seen |= mine
    for epoch in range(STEPS // PER_EPOCH):
        steps = range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
        ids = sorted(i for step in steps for i in seen.get(step, []))
        if ids != list(range(IMAGES)):
            return f"epoch {epoch} saw {len(ids)} images, {len(set(ids))} of them different"
    return ""


def _far(out: Path, whole: End) -> str:
    far = max(abs(x - y) / abs(y) for x, y in zip(losses(out), whole.losses, strict=True))
    return "" if far < 1e-4 else f"losses differ by {far:.1e}"


def frozen(bench: Bench, count: int) -> Iterator[Trial]:
    """Stop a rank by SIGSTOP: all end within 5 s of the time-out, and the rank is named."""
    baseline(bench)
    for seed in range(count):
        out, victim, limit = bench.fresh(), 1 - seed % 2, 15
        freeze = partial(faults.set_environment, MAE_RANK_TIMEOUT_S=str(limit))
        with _started(bench, out, 5, "--steps", "4000", fault=freeze) as job:
            pid = ranks_of(out).get(victim)
            if pid is None:
                raise NotBuilt(f"not built: {job.last_line}")
            os.kill(pid, signal.SIGSTOP)
            sent = time.monotonic()
            code = job.wait(limit + 30)
            took = time.monotonic() - sent
            left = seconds_until_gone(out)
        fault = ""
        if code != 1 or took > limit + 5 or left > 5:
            fault = f"exit {code} after {took:.1f} s, gone {left:.1f} s later: {job.last_line}"
        elif f"rank {victim}" not in job.said:
            fault = f"the rank is not named: {job.last_line}"
        elif job.said.count("most recent call first") < 1:
            fault = "no stack was printed"
        yield Trial(fault, took)


def starts_and_exits(bench: Bench, count: int) -> Iterator[Trial]:
    """Start two ranks for four steps and let them end: exit 0, and a record of it."""
    whole = baseline(bench, "--steps", "4")
    for _ in range(count):
        out = bench.fresh()
        began = time.monotonic()
        with bench.start(out, *TWO, "--steps", "4") as job:
            code = job.wait()
            left = seconds_until_gone(out)
        fault = differs(out, whole)
        if code != 0 or left > 5 or "terminate called" in job.said:
            fault = f"exit {code}: {job.last_line}"
        yield Trial(fault, time.monotonic() - began)
        shutil.rmtree(out)


def races(bench: Bench, count: int) -> Iterator[Trial]:
    """Start two jobs of two ranks in one run directory: one runs, the other leaves no rank."""
    baseline(bench)
    for _ in range(count):
        out = bench.fresh()
        more = (*TWO, "--steps", "100000", "--quiet")
        with bench.start(out, *more) as a, bench.start(out, *more) as b:
            wait_until(lambda a=a, b=b: not (a.process.is_alive() and b.process.is_alive()))
            winner, loser = (a, b) if a.process.is_alive() else (b, a)
            code = loser.wait(5)
            runs = wait_until(lambda out=out: last_step(out) > 1, seconds=60)
            winner.kill()
            seconds_until_gone(out)
        right = code == 2 and runs and loser.said.count("in use by process") == 1
        yield Trial("" if right else f"exit {code}: {loser.said}")
