"""A tiny pre-training run as real processes of the `mae` command, to be disturbed.

Processes are forked from a server that has imported torch, so each starts within 0.1 s. Each leads
a process group of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mae.config.model import ModelConfig
from mae.config.run import PretrainConfig
from mae.errors import MaeError
from tests.jobs.kill_storm import CONTEXT, end_state

CONTEXT.set_forkserver_preload(["tests.chaos.preload"])

STEPS = 40
SAVE_EVERY = 4
IMAGES = 64
MODEL = ModelConfig(
    image_size=(16, 16), patch_size=4, width=64, depth=2, num_heads=4, decoder_width=32,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip
CONFIG = PretrainConfig(model=MODEL, steps=STEPS, batch=16, device="cpu", threads=1, workers=0)
WORDS = (
    "--image-size 16 --model.patch-size 4 --model.width 64 --model.depth 2 --model.num-heads 4 "
    "--model.decoder-width 32 --model.decoder-depth 1 --model.decoder-heads 2 --batch 16 "
    "--device cpu --threads 1 --workers 0 --log-every-steps 1 --keep-checkpoints "
    f"--steps {STEPS} --save-every-steps {SAVE_EVERY}"
).split()
"""`CONFIG` as options. Later options replace them."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_MOST_SECONDS = 120.0


class End(NamedTuple):
    """How an undisturbed run ended."""

    digest: str
    losses: list[float]
    seconds: float


class Job:
    """A process of the `mae` command; a context that leaves no process behind."""

    def __init__(
        self, words: Sequence[str], said: Path, fault: Callable[[], object] | None
    ) -> None:
        self._said = said
        self.began = time.monotonic()
        self.process = CONTEXT.Process(target=run_command, args=(list(words), str(said), fault))
        self.process.start()
        self.pid = int(self.process.pid or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = _MOST_SECONDS) -> int | None:
        """Return the exit code; None if the process still runs after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, number: int) -> None:
        """Send a signal to this process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """Kill the process; return whether it was still running."""
        alive = self.process.is_alive()
        if alive:
            self.send(signal.SIGKILL)
        self.process.join()
        return alive and self.process.exitcode == -signal.SIGKILL

    def orphans(self) -> bool:
        """Return whether processes of the ended job's group still run."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # the kernel and init take a moment
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True

    @property
    def has_begun(self) -> bool:
        """Whether the process has been forked and is about to run the command."""
        return self._said.exists()

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        return (self.said.splitlines() or [""])[-1]


def run_command(words: list[str], said: str, fault: Callable[[], object] | None) -> None:
    """Run the command in this process, which has just been forked."""
    os.setsid()
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["mae", *words]
    if fault is not None:
        fault()
    from mae.cli.main import main

    sys.exit(main(words))


class Bench:
    """A folder for the runs of one fault test, with the images that they train on.

    Args:
        folder: an existing empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        """Figures worth a place in the result."""
        self.images = folder / "images.npy"
        np.save(self.images, images())
        server = CONTEXT.Process(target=int)  # started now, not within what is timed
        server.start()
        server.join()
        self._ends: dict[tuple[str, ...], End] = {}
        self._number = 0
        self._jobs: list[Job] = []

    def close(self) -> None:
        """Kill whatever a failed trial left running."""
        for job in self._jobs:
            job.__exit__()

    def fresh(self) -> Path:
        """Return the path of a run folder that does not exist yet."""
        self._number += 1
        return self.folder / f"run-{self._number:04d}"

    def start(self, out: Path, *more: str, fault: Callable[[], object] | None = None) -> Job:
        """Start or resume a run as a process.

        Args:
            out: its folder.
            more: further options, which replace those of `WORDS`.
            fault: called in the process before the command.
        """
        own = ["--data", str(self.images), "--out", str(out), *WORDS]
        said = self.folder / f"said-{len(self._jobs):04d}.txt"
        job = Job(["pretrain", *merged(own, more)], said, fault)
        self._jobs.append(job)
        return job

    def whole(self, *more: str) -> End:
        """Return the end of an undisturbed run with these options, trained once."""
        if more not in self._ends:
            self._ends[more] = self.undisturbed(*more)
        return self._ends[more]

    def undisturbed(self, *more: str) -> End:
        """Train a run that nothing disturbs."""
        out, began = self.fresh(), time.monotonic()
        with self.start(out, *more) as job:
            if (code := job.wait()) != 0:
                raise RuntimeError(f"an undisturbed run ended with {code}: {job.last_line}")
        return End(end_state(out), losses(out), time.monotonic() - began)

    def finish(self, out: Path, *more: str, of: End | None = None) -> str:
        """Resume a disturbed run to its end.

        Args:
            out: its folder.
            more: options of the resumed run.
            of: where it must end, bit for bit; none: as an undisturbed run with these options.

        Returns:
            What is wrong; empty if it ends where it must.
        """
        end = of or self.whole(*more)
        if not is_finished(out):
            with self.start(out, *more) as job:
                if (code := job.wait()) != 0:
                    return f"the resumed run ended with {code}: {job.last_line}"
        return differs(out, end)

    def run_python(self, words: Sequence[str], *, cwd: Path, timeout_s: float = 900) -> str:
        """Run a Python program; return what it printed to stdout and stderr."""
        done = subprocess.run(
            [sys.executable, *words], cwd=cwd, env=ENVIRONMENT, text=True, timeout=timeout_s,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return done.stdout


def images() -> np.ndarray:
    """Return the images N H W C of every run."""
    return np.random.default_rng(1).integers(0, 256, (IMAGES, 16, 24, 3), dtype=np.uint8)


def merged(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return options without those that later ones replace."""
    given = {word for word in more if word.startswith("--")}
    kept, skip = [], False
    for word in words:
        if word.startswith("--"):
            skip = word in given
        if not skip:
            kept.append(word)
    return [*kept, *more]


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a run's log."""
    file = out / "log.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def last_step(out: Path) -> int:
    """Return the last step in a run's log; 0 before the first."""
    return max((row["step"] for row in rows(out)), default=0)


def losses(out: Path) -> list[float]:
    """Return the logged losses; each step must be there once."""
    found = [row for row in rows(out) if "loss" in row]
    steps = [row["step"] for row in found]
    if steps != list(range(1, len(steps) + 1)):
        raise AssertionError(f"{out.name}: its log has the steps {steps}")
    return [row["loss"] for row in found]


def saved_step(out: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    found = [p.name for p in (out / "checkpoints").glob("step-*") if not p.suffix]
    return max((int(name.removeprefix("step-")) for name in found), default=0)


def is_finished(out: Path) -> bool:
    """Return whether the run is recorded as finished."""
    file = out / "run.json"
    return file.exists() and bool(json.loads(file.read_text())["finished"])


def differs(out: Path, end: End) -> str:
    """Say how a run ended otherwise than an undisturbed one; empty if bit for bit the same."""
    try:
        if not is_finished(out):
            return f"{out.name}: not recorded as finished"
        if (digest := end_state(out)) != end.digest:
            return f"{out.name}: ends at {digest[:24]}, expected {end.digest[:24]}"
        if losses(out) != end.losses:
            return f"{out.name}: its losses differ"
    except (MaeError, AssertionError, OSError) as error:
        return f"{out.name}: {error}"
    return ""


def wait_until(true: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    """Poll until something is true; return False if it is not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
