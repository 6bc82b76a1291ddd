"""Damaged checkpoints, other configurations: refused before a parameter changes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from mae.errors import CheckpointError
from mae.model.create import create
from mae.runs.checkpoint import load_checkpoint
from mae.runs.state import TrainState
from mae.train.resolve import new_state
from tests.chaos.bench import CONFIG, IMAGES, MODEL, Bench, is_finished
from tests.chaos.harness import Trial

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
FRACTIONS = (0.0, 0.01, 0.25, 0.5, 0.99, -1.0)
"""Of a file that are left by a truncation; -1: all but one byte."""


def _two_checkpoints(bench: Bench) -> Path:
    """Return the checkpoint folder of a finished run, with those of its last two saves."""
    out = bench.fresh()
    with bench.start(out, "--keep", "2") as job:
        if job.wait() != 0:
            raise RuntimeError(job.last_line)
    return out / "checkpoints"


class Loader:
    """Loads checkpoints into one state, and sees whether it changed.

    Args:
        folder: with the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = new_state(create(MODEL, seed=1), CONFIG)
        self.before = self._copy()

    def _copy(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.state.model.state_dict().values()]

    def refuses(self, name: str, *, damage: str) -> str:
        """Check that all checkpoints are refused, with nothing changed or deleted.

        Returns:
            What was wrong; empty if the damage was detected.
        """
        names = sorted(self.folder.rglob("*"))
        try:
            load_checkpoint(self.folder, self.state, log=lambda line: None)
        except CheckpointError as error:
            if name not in str(error):
                return f"{damage}: not named: {error}"
        else:
            return f"{damage}: loaded"
        if sorted(self.folder.rglob("*")) != names:
            return f"{damage}: files were deleted or renamed"
        now = self.state.model.state_dict().values()
        moved = self.state.step or self.state.optimizer.state
        if moved or not all(map(torch.equal, self.before, now)):
            return f"{damage}: a parameter changed"
        return ""

    def falls_back(self, name: str, to: int, *, damage: str) -> str:
        """Check that the older checkpoint is loaded instead, and that one line says why."""
        state: TrainState = new_state(create(MODEL, seed=1), CONFIG)
        said: list[str] = []
        load_checkpoint(self.folder, state, log=said.append)
        if state.step != to:
            return f"{damage}: step {state.step} was loaded, expected {to}"
        if len(said) != 1 or name not in said[0]:
            return f"{damage}: it said {said}"
        return ""


def truncations(bench: Bench, count: int) -> Iterator[Trial]:
    """Truncate each file of a checkpoint in six ways: alone, and with an older one beside it."""
    both = _two_checkpoints(bench)
    old, new = sorted(both.glob("step-*"))
    step = int(old.name.removeprefix("step-"))
    for name, left in itertools.islice(itertools.product(FILES, FRACTIONS), count):
        size = (new / name).stat().st_size
        length, damage = size - 1 if left < 0 else int(size * left), f"{name} cut to {left:.0%}"
        alone, two = bench.fresh(), bench.fresh()
        shutil.copytree(new, alone / new.name)
        shutil.copytree(both, two)
        for folder in (alone, two):
            os.truncate(folder / new.name / name, length)
        fault = Loader(alone).refuses(name, damage=damage)
        yield Trial(fault or Loader(two).falls_back(name, step, damage=damage))
        shutil.rmtree(alone)
        shutil.rmtree(two)


def bit_flips(bench: Bench, count: int) -> Iterator[Trial]:
    """Flip one bit of the only checkpoint, in each file in turn; the last flips fall back."""
    both = _two_checkpoints(bench)
    old, new = sorted(both.glob("step-*"))
    alone = bench.fresh()
    shutil.copytree(new, alone / new.name)
    loader, draw = Loader(alone), random.Random(0)
    for number in range(count):
        name = FILES[number % 4]
        file = alone / new.name / name
        bit = draw.randrange(8 * file.stat().st_size)
        damage = f"bit {bit} of {name}"
        _flip(file, bit)
        # A manifest's flip may show in what it says of another file.
        fault = loader.refuses("" if name == "manifest.json" else name, damage=damage)
        if not fault and number % 20 == 0:
            two = bench.fresh()
            shutil.copytree(old, two / old.name)
            shutil.copytree(alone / new.name, two / new.name)
            step = int(old.name.removeprefix("step-"))
            fault = Loader(two).falls_back(new.name, step, damage=damage)
            shutil.rmtree(two)
        _flip(file, bit)
        yield Trial(fault)


def _flip(file: Path, bit: int) -> None:
    with file.open("rb+") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0]
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


def mixed_files(bench: Bench, count: int) -> Iterator[Trial]:
    """Remove a file, add one, swap two, or take one of another step."""
    both = _two_checkpoints(bench)
    old, new = sorted(both.glob("step-*"))
    kinds = [("missing", name, "") for name in FILES] + [("extra", "more.safetensors", "")]
    kinds += [("swapped", a, b) for a, b in itertools.combinations(FILES, 2)]
    kinds += [("of another step", name, "") for name in FILES]
    for kind, name, other in itertools.islice(kinds, count):
        alone = bench.fresh()
        path = Path(shutil.copytree(new, alone / new.name))
        if kind == "missing":
            (path / name).unlink()
        elif kind == "extra":
            shutil.copy(path / FILES[0], path / name)
        elif kind == "swapped":
            (path / name).rename(path / "aside")
            (path / other).rename(path / name)
            (path / "aside").rename(path / other)
        else:
            shutil.copy(old / name, path / name)
        yield Trial(Loader(alone).refuses("", damage=f"{kind} {name} {other}"))
        shutil.rmtree(alone)


def all_damaged(bench: Bench, count: int) -> Iterator[Trial]:
    """Damage every checkpoint of an unfinished run: the command ends with 1 and each reason."""
    begun = _two_checkpoints(bench).parent
    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(record | {"finished": False}))
    for number in range(count):
        out, draw = bench.fresh(), random.Random(number)
        shutil.copytree(begun, out)
        for path in (out / "checkpoints").glob("step-*"):
            file = path / FILES[draw.randrange(4)]
            if draw.random() < 0.5:
                os.truncate(file, file.stat().st_size // 2)
            else:
                _flip(file, draw.randrange(8 * file.stat().st_size))
        before = _contents(out / "checkpoints")
        began = time.monotonic()
        with bench.start(out, "--keep", "2") as job:
            code = job.wait(60)
        took = time.monotonic() - began
        yield Trial(_unclear(out, code, job.said, took, before), took)


def _unclear(out: Path, code: int | None, said: str, took: float, before: object) -> str:
    lines = [line for line in said.splitlines() if line.startswith("mae: ")]
    if code != 1 or took > 10 or len(lines) != 1 or "Traceback" in said:
        return f"exit {code} after {took:.1f} s: {said}"
    if not all(path.name in lines[0] for path in (out / "checkpoints").glob("step-*")):
        return f"a reason is missing: {lines[0]}"
    if _contents(out / "checkpoints") != before or is_finished(out):
        return "a file was changed or deleted"
    return ""


def _contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(p.name, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


CHANGES = (
    (("--model.depth", "3"), "model.depth: run has 2, asked 3"),
    (("--model.width", "32"), "model.width: run has 64, asked 32"),
    (("--batch", "8"), "batch: run has 16, asked 8"),
    (("--seed", "7"), "seed: run has 0, asked 7"),
    (("--steps", "50"), "steps: run has 40, asked 50"),
    (("--lr", "0.5"), "optim.lr: run has"),
    (("--mask-ratio", "0.5"), "mask_ratio: run has 0.75, asked 0.5"),
    (("--data", "fewer"), f"{IMAGES - 1} images, the run has {IMAGES}"),
    (("--data", "other"), "its data has changed"),
)


def other_runs(bench: Bench, count: int) -> Iterator[Trial]:
    """Resume with another configuration or other data: exit 2 within 5 s, with the difference."""
    import numpy as np

    from tests.chaos.bench import images

    np.save(bench.folder / "fewer.npy", images()[1:])
    np.save(bench.folder / "other.npy", images()[::-1, ::2])
    out = bench.fresh()
    with bench.start(out) as job:
        while not list(out.glob("checkpoints/step-*")) and job.process.is_alive():
            time.sleep(0.01)
    before = _contents(out)
    for more, said in CHANGES[:count]:
        name, value = more
        value = str(bench.folder / f"{value}.npy") if name == "--data" else value
        began = time.monotonic()
        with bench.start(out, name, value) as job:
            code = job.wait(30)
        took = time.monotonic() - began
        fault = f"exit {code} after {took:.1f} s: {job.last_line}"
        changed = [a for a, b in zip(before, _contents(out), strict=True) if a != b]
        changed = [item for item in changed if item[0] != "lock"]
        right = code == 2 and took < 5 and said in job.last_line and not changed
        yield Trial("" if right else f"{fault}; changed: {[n for n, _ in changed]}", took)
