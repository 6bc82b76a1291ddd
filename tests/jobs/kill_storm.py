"""Kill a pre-training run again and again; it must end bitwise where an undisturbed one ends.

`python -m tests.jobs.kill_storm 30` prints what came of thirty kills.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mae.config.run import AugmentConfig, ModelConfig, OptimConfig, PretrainConfig
from mae.parallel.shards import shard_of
from mae.runs.sharded import METADATA, ShardedFiles

CONFIG = PretrainConfig(
    model=ModelConfig(
        image_size=(12, 20),
        patch_size=4,
        width=24,
        depth=2,
        num_heads=3,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
    ),
    steps=60,
    batch=8,
    optim=OptimConfig(lr=0.05),
    augment=AugmentConfig(crop_scale=(0.5, 1.0)),
    device="cpu",
    threads=1,
    workers=0,
    save_every_steps=2,
    log_every_steps=1,
    keep_checkpoints=True,  # whose digest is compared
)
SHORT = replace(CONFIG, steps=4, keep_checkpoints=False)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
CONTEXT = multiprocessing.get_context("forkserver")
# torch is imported once, by the server; each run is then a process of its own within 0.1 s.
CONTEXT.set_forkserver_preload(["mae.jobs.pretrain"])


def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (50, 16, 24, 3), dtype=np.uint8)


def train(out: str) -> None:
    from mae.jobs.pretrain import pretrain

    torch.set_num_threads(1)
    pretrain(CONFIG, data=images(), out=out, quiet=True)


def start(out: Path) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=train, args=(str(out),))
    process.start()
    return process


def end_state(out: Path) -> str:
    """Digest of the last parameters and moments, and of every logged loss."""
    last = sorted(p for p in (out / "checkpoints").glob("step-*") if not p.suffix)[-1]
    digest = hashlib.sha256()
    if (last / METADATA).exists():  # ranks hold parts, whose order in their files may differ
        files = ShardedFiles(last)
        into = {n: torch.empty(size, dtype=kind) for n, (kind, size) in files.forms.items()}
        files.read({name: shard_of(tensor) for name, tensor in into.items()})
        for name in sorted(into):
            digest.update(name.encode() + into[name].numpy().tobytes())
        return f"{last.name} {digest.hexdigest()}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        digest.update((last / name).read_bytes())
    return f"{last.name} {digest.hexdigest()}"


def kill_in_a_save(process: multiprocessing.process.BaseProcess, out: Path, skip: int) -> bool:
    """Kill when the next half-written checkpoint but `skip` is seen; False if the run ends."""
    seen: set[str] = set()
    while process.is_alive():
        seen.update(p.name for p in (out / "checkpoints").glob(".tmp-step-*"))
        if len(seen) > skip:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            return True
    return False


def kill_after(process: multiprocessing.process.BaseProcess, seconds: float) -> bool:
    process.join(seconds)
    if not process.is_alive():
        return False
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return True


def watch_the_end(out: str, copies: str, die_at: int | None) -> None:
    """Train, and copy the run before each change to the disk after the last checkpoint.

    Args:
        out: the run.
        copies: folder of the copies, 0 and so on: what a kill at that moment leaves.
        die_at: the change before which the process is killed indeed, without copies.
    """
    torch.set_num_threads(1)
    watching, changes, end = [False], itertools.count(), f"step-{SHORT.steps:08d}"

    def look(event: str, values: tuple[object, ...]) -> None:
        if event not in CHANGES:
            return
        if watching[0]:
            number = next(changes)
            if number == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if die_at is None:
                watching[0] = False  # what the copy itself makes does not count
                shutil.copytree(out, Path(copies, str(number)))
                watching[0] = True
        watching[0] |= event == "os.rename" and str(values[1]).endswith(end)

    sys.addaudithook(look)
    from mae.jobs.pretrain import pretrain

    pretrain(SHORT, data=images(), out=out, quiet=True)


class Storm(NamedTuple):
    """What came of a storm."""

    digest: str
    """Of the end of a run that nothing disturbed."""
    kills: int
    in_save: int
    """Kills inside a save."""
    equal: bool
    """Whether every run ended at the same digest."""


def storm(folder: Path, kills: int, seed: int = 0) -> Storm:
    """Kill runs `kills` times, every other one inside a save; begin anew where a run ended."""
    draw = random.Random(seed)
    began = time.monotonic()
    start(folder / "whole").join()
    usual = time.monotonic() - began
    digest, hit, in_save, equal = end_state(folder / "whole"), 0, 0, True
    out, number = folder / "run-0", 0
    while hit < kills:
        process = start(out)
        if hit % 2:
            killed = kill_in_a_save(process, out, draw.randrange(8))
            in_save += killed
        else:
            killed = kill_after(process, draw.uniform(0, usual))
        hit += killed
        if not killed:
            equal = equal and end_state(out) == digest
            number += 1
            out = folder / f"run-{number}"
    if kills:
        # A run that was killed after its end refuses to start again, and that is its end, too.
        start(out).join()
        equal = equal and end_state(out) == digest
    return Storm(digest, hit, in_save, equal)


if __name__ == "__main__":
    root = Path(tempfile.mkdtemp())
    found = storm(root, int(sys.argv[1]) if len(sys.argv) > 1 else 30, seed=int(time.time()))
    shutil.rmtree(root)
    print(f"undisturbed end: {found.digest}")
    print(f"{found.kills} kills, {found.in_save} inside a save; all ends equal: {found.equal}")
    sys.exit(not found.equal)
