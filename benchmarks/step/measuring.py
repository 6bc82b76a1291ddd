"""Time, memory and arithmetic of the sides, in turn in one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.claim.measuring import process_bytes
from benchmarks.memory import kept_for_backward
from benchmarks.processor import PRODUCTS, SQUARE, product_rates
from benchmarks.spread import Spread
from benchmarks.step.sides import NAMES, PEERS, SIZES, Side, make_batch, make_sides
from mae.config.objective import ObjectiveConfig
from mae.data.batching.batch import Batch
from mae.model.costs import step_flops
from mae.model.onednn_linear import HalfWeights
from mae.planning.hardware import has_bf16
from mae.train.resolve import resolve_precision

PRODUCT_CALLS = 2  # in each round


class Measured(NamedTuple):
    """Our step and the peers' at a size in one precision."""

    rate: Spread
    """Our images a second."""
    whole: dict[str, Spread]
    """A peer's step over ours, round by round."""
    update_shares: dict[str, float]
    """The optimizer's, of the step of each side."""
    gflops: Spread
    """Of our step, in GFLOP/s; only matrix products are counted."""
    product_gflops: dict[str, float]
    """The best of each product of this precision, of the same rounds."""
    kept_bytes: dict[str, float]
    """Per image, by side: what the forward keeps for the backward, float32 weights left out."""
    peak_bytes: dict[str, int]
    """By side: the peak of a process in training beyond what it imports."""

    @property
    def share_of_product(self) -> float:
        """What our step makes of the best product of its precision."""
        return self.gflops.median / max(self.product_gflops.values())


class Sized(NamedTuple):
    """All figures of a size."""

    size: str
    batch: int
    precisions: dict[str, Measured]
    default: str
    """What `--precision auto` gives on this processor."""
    by_default: dict[str, Spread]
    """A peer's step in float32, its default, over ours in our default; empty if not measured."""

    def values(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        each = {
            name: found._asdict() | {"share_of_product": found.share_of_product}
            for name, found in self.precisions.items()
        }
        return self._asdict() | {"precisions": each}


def measure(size: str, *, pairs: int, precisions: Sequence[str]) -> Sized:
    """Let all sides make steps in turn, in every precision."""
    config, batch = SIZES[size]
    sides = [side for name in NAMES for side in make_sides(name, config, batch, precisions)]
    batches = {name: make_batch(name, config, batch) for name in NAMES}
    for side in sides:
        _timed(side, batches[side.name])  # the first allocates
    kept = {_key(side): saved_bytes(side, batches[side.name]) / batch for side in sides}
    rounds = list[dict[tuple[str, str], tuple[float, float]]]()
    products = list[dict[str, float]]()
    for number in range(pairs):
        # Another side begins each time, so that none always comes after the same one.
        order = [*sides[number % len(sides) :], *sides[: number % len(sides)]]
        rounds.append({_key(side): _timed(side, batches[side.name]) for side in order})
        products.append(product_rates(SQUARE, precisions, calls=PRODUCT_CALLS))
    seconds = {key: [each[key][0] for each in rounds] for key in kept}
    updates = {key: sum(each[key][1] for each in rounds) / sum(seconds[key]) for key in kept}
    best = {name: max(each[name] for each in products) for name in products[0]}
    work = step_flops(config, ObjectiveConfig()) * batch / 1e9
    found = {}
    for precision in precisions:
        ours = seconds["mae", precision]
        found[precision] = Measured(
            rate=Spread.of([batch / each for each in ours]),
            whole={peer: _ratio(seconds[peer, precision], ours) for peer in PEERS},
            update_shares={name: updates[name, precision] for name in NAMES},
            gflops=Spread.of([work / each for each in ours]),
            product_gflops={n: r for n, r in best.items() if PRODUCTS[n].precision == precision},
            kept_bytes={name: kept[name, precision] for name in NAMES},
            peak_bytes={name: _alone(name, size, precision) for name in NAMES},
        )
    default = our_default()
    by_default = {}
    if {"float32", default} <= {*precisions}:
        ours = seconds["mae", default]
        by_default = {peer: _ratio(seconds[peer, "float32"], ours) for peer in PEERS}
    return Sized(size, batch, found, default, by_default)


def our_default() -> str:
    """Return the precision that `--precision auto` gives on this processor."""
    return resolve_precision("auto", has_bf16=has_bf16(torch.device("cpu")))


def _key(side: Side) -> tuple[str, str]:
    return side.name, side.precision


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    return Spread.of([t / o for t, o in zip(theirs, ours, strict=True)])


def _timed(side: Side, batch: Batch) -> tuple[float, float]:
    before, began = side.updating, time.perf_counter()
    loss = side.step(batch)
    seconds = time.perf_counter() - began
    if not torch.isfinite(loss):
        raise RuntimeError(f"{side.name} in {side.precision}: the loss is not finite")
    return seconds, side.updating - before


def saved_bytes(side: Side, batch: Batch) -> int:
    """Count the bytes that a forward keeps for its backward, float32 weights left out."""
    copies = HalfWeights(side.model) if side.precision == "bf16" else nullcontext()
    with copies:
        return kept_for_backward(side.model, lambda: side.loss(batch))


def _alone(name: str, size: str, precision: str) -> int:
    """Train one side in a process of its own and give its peak."""
    command = [sys.executable, "-m", "benchmarks.step", "--sizes", size, "--alone", name]
    command += ["--precision", precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: int = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_bytes(name: str, size: str, precision: str) -> int:
    """Make a few steps, and give the most memory this process took beyond what it imported."""
    config, batch = SIZES[size]
    make_sides(name, *_SMALLEST, [precision])  # imports everything before memory is counted
    before = process_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    (side,), images = make_sides(name, config, batch, [precision]), make_batch(name, config, batch)
    for _ in range(3):
        side.step(images)
    return process_bytes("VmHWM") - before


_SMALLEST = (SIZES["tiny"][0], 1)
