"""Broken images, non-finite values, foreign random draws, reader processes that die."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.bad_images import write_bad, write_good
from tests.chaos import faults
from tests.chaos.bench import Bench, Job, differs, last_step, losses, rows, saved_step, wait_until
from tests.chaos.harness import Trial, readers_of
from tests.jobs.kill_storm import end_state

EPOCHS = ("--batch", "20", "--steps", "20")
"""Two epochs of two hundred images."""


def broken_images(bench: Bench, count: int) -> Iterator[Trial]:
    """Train on 200 images of which 20 are broken, each in its own way, by 0 and 2 readers."""
    folder = bench.folder / "in"
    folder.mkdir()
    write_good(folder, count=180)
    bad = sorted(write_bad(folder))
    ends = set()
    for number in range(count):
        out = bench.fresh()
        more = ("--data", str(folder), "--workers", str(2 * (number % 2)), *EPOCHS)
        with bench.start(out, *more) as job:
            code = job.wait()
        lines = (out / "bad-files.tsv").read_text().splitlines()
        ends.add(end_state(out) if code == 0 else job.last_line)
        fault = ""
        if code != 0 or sorted(line.split("\t")[0] for line in lines) != bad:
            fault = f"exit {code}, {len(lines)} of {len(bad)} named: {job.last_line}"
        elif len(ends) > 1:
            fault = f"they end otherwise: {ends}"
        yield Trial(fault)


def too_many_broken(bench: Bench, count: int) -> Iterator[Trial]:
    """Train on 200 images of which 21 are broken, more than a tenth: exit 1 with the list."""
    folder = bench.folder / "in"
    folder.mkdir()
    write_good(folder, count=179)
    write_bad(folder)
    (folder / "one more.jpg").write_bytes(b"")
    for number in range(count):
        out = bench.fresh()
        with bench.start(out, "--data", str(folder), *EPOCHS, "--seed", str(number)) as job:
            code = job.wait()
        right = code == 1 and "of 200 cannot be read, more than 10%" in job.last_line
        yield Trial("" if right else f"exit {code}: {job.last_line}")


def foreign_draws(bench: Bench, count: int) -> Iterator[Trial]:
    """Draw from the generators of torch, numpy and Python before each batch: nothing changes."""
    for seed in range(count):
        out = bench.fresh()
        with bench.start(out, fault=partial(faults.draw_from_global_generators, seed)) as job:
            code = job.wait()
        yield Trial(differs(out, bench.whole()) if code == 0 else job.last_line)
        shutil.rmtree(out)


def few_bad_steps(bench: Bench, count: int) -> Iterator[Trial]:
    """Make four steps in a row NaN or infinite: they are skipped, and the run ends finite."""
    for seed in range(count):
        out, first = bench.fresh(), random.Random(seed).randrange(30)
        value = (float("nan"), float("inf"))[seed % 2]
        steps = frozenset(range(first, first + 4))
        with bench.start(out, fault=partial(faults.not_finite_at, steps, value=value)) as job:
            code = job.wait()
        skipped = [row["step"] - 1 for row in rows(out) if "skipped" in row]
        fault = "" if code == 0 else f"exit {code}: {job.last_line}"
        if not fault and (skipped != sorted(steps) or not _is_finite(out)):
            fault = f"skipped {skipped}, expected {sorted(steps)}"
        yield Trial(fault)
        shutil.rmtree(out)


def five_bad_steps(bench: Bench, count: int) -> Iterator[Trial]:
    """Make five steps in a row NaN: exit 1, no step moves a parameter, every checkpoint finite."""
    for seed in range(count):
        out, first = bench.fresh(), random.Random(seed).randrange(2, 30)
        steps = frozenset(range(first, first + 5))
        every = ("--save-every-steps", "1", "--keep", "20")
        with bench.start(out, *every, fault=partial(faults.not_finite_at, steps)) as job:
            code = job.wait()
        saved = sorted(out.glob("checkpoints/step-*"))
        of_window = [p for p in saved if int(p.name.removeprefix("step-")) in {first, *steps}]
        bits = {(p / "model.safetensors").read_bytes() for p in of_window}
        fault = ""
        if code != 1 or "in 5 steps in a row" not in job.last_line:
            fault = f"exit {code}: {job.last_line}"
        elif "last good checkpoint: " not in job.last_line or not _is_finite(out):
            fault = f"not finite, or not named: {job.last_line}"
        elif len(of_window) < 5 or len(bits) != 1:
            fault = f"{len(bits)} states in {len(of_window)} checkpoints around the skipped steps"
        yield Trial(fault)
        shutil.rmtree(out)


def round_bad_steps(bench: Bench, count: int) -> Iterator[Trial]:
    """Go round five NaN steps by the options that the error names, killed in between."""
    bad = partial(faults.not_finite_at, frozenset(range(17, 22)))
    whole = None
    for number in range(count + 1):
        out = bench.fresh()
        with bench.start(out, fault=bad) as job:
            code = job.wait()
        options = re.search(r"--resume-from \d+ --skip-steps \d+", job.last_line)
        if code != 1 or options is None:
            yield Trial(f"exit {code}: {job.last_line}")
            continue
        words = options[0].split()
        if whole is not None:
            die = partial(
                faults.together, bad, partial(faults.die_at_change, 2 * number, under=str(out))
            )
            with bench.start(out, *words, fault=die) as job:
                code = job.wait()
        with bench.start(out, *words, fault=bad) as job:
            code = job.wait()
        windows = [row for row in rows(out) if "window" in row]
        end = end_state(out) if code == 0 else ""
        if whole is None:  # undisturbed
            whole = end
            continue
        fault = "" if code == 0 else f"exit {code}: {job.last_line}"
        if not fault and (end != whole or len(windows) != 1 or not _is_finite(out)):
            fault = f"ends at {end}, expected {whole}; {len(windows)} windows in the log"
        yield Trial(fault)
        shutil.rmtree(out)


def _is_finite(out: Path) -> bool:
    files = out.glob("checkpoints/step-*/model.safetensors")
    return all(bool(torch.isfinite(t).all()) for f in files for t in load_file(f).values())


def killed_readers(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill a reader process: it is named and restarted, and no sample is lost."""
    whole = bench.whole("--steps", "400")
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        with bench.start(out, "--steps", "400", "--workers", "2") as job:
            step = draw.randrange(1, 200)
            wait_until(lambda out=out, job=job, step=step: _reached(out, step, job), seconds=60)
            pid = draw.choice(readers_of(job.pid))
            os.kill(pid, signal.SIGKILL)
            code = job.wait()
        named = "reader" in job.said and "SIGKILL" in job.said
        fault = differs(out, whole) if code == 0 and named else f"exit {code}: {job.last_line}"
        yield Trial(fault)
        shutil.rmtree(out, ignore_errors=True)


def _reached(out: Path, step: int, job: Job) -> bool:
    return last_step(out) >= step or not job.process.is_alive()


def log_of_a_kill(bench: Bench, count: int) -> Iterator[Trial]:
    """Kill inside a step: the log of the resumed run has each step once, in order."""
    for seed in range(count):
        out, draw = bench.fresh(), random.Random(seed)
        with bench.start(out) as job:
            wait_until(lambda out=out: saved_step(out) >= 4)
            job.process.join(draw.uniform(0, 0.3))
            job.kill()
        fault = bench.finish(out)
        yield Trial(fault or ("" if len(losses(out)) == 40 else "rows are missing"))
