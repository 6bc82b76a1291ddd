"""Disks that are full, failing or slow; the order of writes; readers beside the writer."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Self

import torch

import mae
from mae.errors import MaeError
from mae.runs import checkpoint
from tests.chaos import faults
from tests.chaos.bench import STEPS, Bench, differs, is_finished, saved_step, wait_until
from tests.chaos.harness import NotBuilt, Trial
from tests.jobs.kill_storm import end_state
from tests.runs import killed_saver

PAGE = 4096
MODEL_PAGES, OPTIMIZER_PAGES = 120, 238
"""Pages of 4 KiB that the two large files of a checkpoint take."""
ROOM = (
    (10, "model.safetensors"),
    (MODEL_PAGES + 10, "optimizer.safetensors"),
    (MODEL_PAGES + OPTIMIZER_PAGES, "state.json"),
    (MODEL_PAGES + OPTIMIZER_PAGES + 1, "manifest.json"),
)
"""Pages left when the disk fills, and the file that then does not fit."""


@contextmanager
def small_disk(bench: Bench, megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory of so many megabytes; needs root."""
    disk = bench.folder / "disk"
    disk.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True).returncode:
        raise NotBuilt("not run: only root may mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def disk_full(bench: Bench, count: int) -> Iterator[Trial]:
    """Fill the disk during each file of a save, and before it; free it before the next save."""
    digest = bench.whole().digest
    for number in range(count):
        seen = number >= len(ROOM)
        pages, name = (ROOM * 2)[number]
        with small_disk(bench, 16) as disk:
            fill = partial(faults.fill_the_disk, str(disk), at_save=3, pages_left=pages, seen=seen)
            with bench.start(disk / "run", fault=fill) as job:
                code = job.wait(60)
            lines = [line for line in job.said.splitlines() if "not saved" in line]
            fault = ""
            if code != 0 or len(lines) != 1:
                fault = f"exit {code}: {job.said}"
            elif "MB are free" not in lines[0] or "step-00000012" not in lines[0]:
                fault = f"the message: {lines[0]}"
            elif end_state(disk / "run") != digest:
                fault = "the run ended otherwise"
            elif litter := _litter(disk / "run"):
                fault = f"left: {litter}"
            yield Trial(f"{name}, {pages} pages left: {fault}" if fault else "")


def _litter(out: Path) -> list[str]:
    return [path.name for path in out.rglob(".*")]


def failing_writes(bench: Bench, count: int) -> Iterator[Trial]:
    """Fail the n-th change to the checkpoints by EIO, EROFS or EDQUOT: training goes on."""
    codes = (errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOSPC)
    digest = bench.whole().digest
    for number in range(count):
        out = bench.fresh()
        fail = partial(faults.fail_changes, number, code=codes[number % 4])
        with bench.start(out, fault=fail) as job:
            code = job.wait(60)
        fault = f"change {number}: exit {code}: {job.last_line}" if code != 0 else ""
        if not fault and end_state(out) != digest:
            fault = f"change {number}: the run ended otherwise"
        if not fault and (left := _litter(out)):
            fault = f"change {number}: left {left}"
        yield Trial(fault)
        shutil.rmtree(out)


def three_failed_saves(bench: Bench, count: int) -> Iterator[Trial]:
    """Fail every save from some moment on: exit 1 at the third, and the last good one resumes."""
    codes = (errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOSPC)
    for number in range(count):
        out = bench.fresh()
        code_of = codes[number % 4]
        fail = partial(faults.fail_changes, 40 + 7 * number, count=10**6, code=code_of)
        with bench.start(out, fault=fail) as job:
            code = job.wait(60)
        lines = [line for line in job.said.splitlines() if os.strerror(code_of) in line]
        fault = ""
        if code != 1 or len(lines) != 3 or "training continues" not in lines[0]:
            fault = f"exit {code}: {job.said}"
        elif not 0 < saved_step(out) < STEPS or is_finished(out):
            fault = f"step {saved_step(out)} is saved"
        yield Trial(fault or bench.finish(out))


class WriteOrder:
    """What is on the disk, by fsync, while `os.fsync` and `os.rename` are those of this object.

    Args:
        files: of a checkpoint, with its manifest.
    """

    def __init__(self, files: int = 4) -> None:
        self._fsync, self._rename = os.fsync, os.rename
        self._expected = files
        self.files: dict[str, str] = {}
        """Digest of each file at its last fsync."""
        self.folders: list[str] = []
        self.fault = ""

    def fsync(self, descriptor: int) -> None:
        """Note what this makes durable."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.folders.append(str(path))
        else:
            self.files[str(path)] = _digest(path)
            if path.name == "manifest.json" and len(self.files) != self._expected:
                self.fault = f"the manifest was written after {len(self.files) - 1} files"
        self._fsync(descriptor)

    def rename(self, source: str | Path, target: str | Path, **more: int) -> None:
        """Check, where a checkpoint appears, that all of it is on the disk."""
        if Path(target).name.startswith("step-"):
            late = [p.name for p in Path(source).iterdir() if self.files.get(str(p)) != _digest(p)]
            if late or self.folders != [str(source)]:
                self.fault = f"at the rename not on the disk: {late}; folders: {self.folders}"
        elif str(source) in self.files:  # .metadata is written under another name at first
            self.files[str(target)] = self.files.pop(str(source))
        self._rename(source, target, **more)

    def __enter__(self) -> Self:
        os.fsync, os.rename = self.fsync, self.rename
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync, os.rename = self._fsync, self._rename


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def order_of_writes(bench: Bench, count: int) -> Iterator[Trial]:
    """Record what was on the disk at each rename: all files, their folder, then the rename."""
    folder, state = bench.folder / "run" / "checkpoints", killed_saver.fresh_state()
    for step in range(1, count + 1):
        killed_saver.set_step(state, step)
        with WriteOrder() as order:
            checkpoint.save_checkpoint(folder, state, extra={"of": step}, keep=2)
        if order.folders[1:2] != [str(folder)]:
            order.fault = "its name was not on the disk when the save returned"
        yield Trial(order.fault)


def keep_last(bench: Bench, count: int) -> Iterator[Trial]:
    """Keep the last 2, 3 and 10 while deletions fail at random, then no more."""
    for number in range(count):
        keep, draw = (2, 3, 10)[number % 3], random.Random(number)
        yield Trial(_kept(bench.fresh(), keep, draw))


def _kept(folder: Path, keep: int, draw: random.Random) -> str:
    state, real = killed_saver.fresh_state(), os.rename
    failing = [True]

    def rename(source: str | Path, target: str | Path, **more: int) -> None:
        if failing[0] and ".del-" in str(target) and draw.random() < 0.7:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target, **more)

    def save() -> int:
        killed_saver.set_step(state, state.step + 1)
        checkpoint.save_checkpoint(folder, state, extra={"of": state.step}, keep=keep)
        return sum(not checkpoint._damage(path) for path in folder.glob("step-*"))

    os.rename = rename
    try:
        for done in range(1, 2 * keep + 3):
            if (whole := save()) < min(done, keep):
                return f"{whole} intact after {done} saves, keep={keep}"
        failing[0] = False
        save()
    finally:
        os.rename = real
    names = sorted(path.name for path in folder.iterdir())
    return "" if len(names) == keep else f"left: {names}, keep={keep}"


def readers_beside(bench: Bench, count: int) -> Iterator[Trial]:
    """Load the weights of a run again and again while it saves and deletes at every step."""
    out = bench.fresh()
    more = ("--steps", "1000000", "--save-every-steps", "1", "--keep", "2", "--quiet")
    with bench.start(out, *more) as job:
        wait_until(lambda: saved_step(out) > 0)
        seen = 0.0
        for _ in range(count):
            began = time.monotonic()
            try:
                with redirect_stderr(StringIO()):
                    model = mae.load(out)
                finite = all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())
                fault = "" if finite else "a tensor is not finite"
            except (MaeError, OSError) as error:
                fault = f"{type(error).__name__}: {error}"
            seen = time.monotonic() - began
            yield Trial(fault, seen)
        if job.process.exitcode is not None:
            yield Trial(f"the writer ended: {job.last_line}")
        bench.notes.append(f"{saved_step(out)} saves meanwhile")


def signals_while_full(bench: Bench, count: int) -> Iterator[Trial]:
    """Stop a run whose last save fails: exit 1, and it resumes from the one before."""
    for number in range(count):
        out = bench.fresh()
        fail = partial(faults.fail_changes, 45 + number, count=10**6, code=errno.ENOSPC)
        with bench.start(out, fault=fail) as job:
            wait_until(lambda: "not saved" in job.said)
            job.send(15)
            code = job.wait(30)
        fault = "" if code == 1 and "Traceback" not in job.said else f"exit {code}: {job.said}"
        yield Trial(fault or differs_after(bench, out))


def differs_after(bench: Bench, out: Path) -> str:
    """Resume a run; say how it ends otherwise than an undisturbed one."""
    return bench.finish(out) or differs(out, bench.whole())
