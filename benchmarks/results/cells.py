"""All that is trained and measured, by name, and what does it: a process a core, one thread each.

Every measurement is a cell, kept as a file of its own: started again, only what is missing is
measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from benchmarks.results.measuring import FEWEST, STEPS, Cell, few_labels, partial_tuning, transfer
from benchmarks.results.page import write_page
from benchmarks.results.pretraining import HALVES, pretrain_half, pretrain_whole, supervise_half
from mae.atomic import write_json_atomic

SEEDS = (0, 1, 2)
PAGE = Path("docs/results.md")

Work = Callable[[Path], object]


def encoders() -> dict[str, Work]:
    """Name what has to be trained first."""
    work: dict[str, Work] = {f"demo {s}": partial(pretrain_whole, seed=s) for s in SEEDS}
    for half in range(len(HALVES)):
        for seed in SEEDS:
            work[f"half {half} mae {seed}"] = partial(pretrain_half, half=half, seed=seed)
            work[f"half {half} supervised {seed}"] = partial(supervise_half, half=half, seed=seed)
    return work


def cells() -> dict[str, Callable[[Path], Cell]]:
    """Name what is measured of them, by the name of its file."""
    work: dict[str, Callable[[Path], Cell]] = {}
    for seed in SEEDS:
        for n in STEPS:
            work[f"few-{n}-{seed}"] = partial(few_labels, seed=seed, per_class=n)
        for n in FEWEST:
            work[f"partial-{n}-{seed}"] = partial(partial_tuning, seed=seed, per_class=n)
            for half in range(len(HALVES)):
                given = {"half": half, "seed": seed, "per_class": n}
                work[f"transfer-{half}-{n}-{seed}"] = partial(transfer, **given)
    return work


def cell_file(folder: Path, name: str) -> Path:
    """Say where a cell is kept."""
    return folder / "cells" / f"{name}.json"


def measure(folder: Path, name: str) -> None:
    """Measure a cell and keep it, unless it is there."""
    file = cell_file(folder, name)
    if not file.exists():
        write_json_atomic(file, cells()[name](folder))


def prepare(folder: Path, name: str) -> None:
    """Train an encoder, unless it is there."""
    encoders()[name](folder)


def fill_page(folder: Path) -> None:
    """Train, measure, and write the page."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for step, names in ((prepare, encoders()), (measure, cells())):
            _all(pool, partial(step, folder), names)
    found = {name: json.loads(cell_file(folder, name).read_bytes()) for name in cells()}
    write_page(PAGE, found, seeds=SEEDS)
    print(f"written: {PAGE}")


def _all(pool: ProcessPoolExecutor, work: Callable[[str], None], names: Iterable[str]) -> None:
    begun = {pool.submit(work, name): name for name in names}
    for done, future in enumerate(as_completed(begun), start=1):
        future.result()
        print(f"{done} of {len(begun)}: {begun[future]}", file=sys.stderr, flush=True)
