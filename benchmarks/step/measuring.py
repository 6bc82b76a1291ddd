"""Time, memory and arithmetic of the sides, in turn in one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.claim.measuring import process_bytes
from benchmarks.memory import kept_for_backward
from benchmarks.spread import Spread
from benchmarks.step.sides import NAMES, PEERS, SIZES, Side, make_batch, make_side
from mae.config.objective import ObjectiveConfig
from mae.data.batching.batch import Batch
from mae.model.costs import step_flops
from mae.model.onednn_linear import linear

PEAK_EDGE = 2048


class Steps(NamedTuple):
    """Seconds of the steps of a side, round by round."""

    whole: tuple[float, ...]
    updates: tuple[float, ...]
    """Of them, of the optimiser."""

    @property
    def models(self) -> tuple[float, ...]:
        """Forward and backward."""
        return tuple(whole - update for whole, update in zip(self.whole, self.updates, strict=True))


class Sized(NamedTuple):
    """What came out at a size."""

    size: str
    batch: int
    rate: Spread
    """Our images a second."""
    whole: dict[str, Spread]
    """A peer's step over ours, pair by pair."""
    model: dict[str, Spread]
    """Of them, forward and backward alone."""
    ours_updating: dict[str, Spread]
    """A peer's step with our optimiser over ours."""
    update_share: float
    """The optimiser's, of our step."""
    gflops: Spread
    """What our step makes a second, in 10^9 operations; only matrix products are counted."""
    peak_gflops: dict[str, float]
    """Of one square product of torch's (mkl), and of a linear layer of ours."""
    kept_bytes: dict[str, float]
    """Of an image, by side: what the forward keeps for the backward, weights left out."""
    peak_bytes: dict[str, int]
    """Of a process in training, by side: what it takes beyond what it imports."""


def measure(size: str, *, pairs: int) -> Sized:
    """Run all sides in turn."""
    config, batch = SIZES[size]
    sides = [make_side(name, config, batch) for name in NAMES]
    batches = {name: make_batch(name, config, batch) for name in NAMES}
    for side in sides:
        _timed(side, batches[side.name])  # the first allocates
    kept = {side.name: saved_bytes(side, batches[side.name]) / batch for side in sides}
    rounds = list[dict[str, tuple[float, float]]]()
    peaks = list[dict[str, float]]()
    for number in range(pairs):
        # Another one begins each time, so that nobody always comes after the same.
        order = [*sides[number % len(sides) :], *sides[: number % len(sides)]]
        rounds.append({side.name: _timed(side, batches[side.name]) for side in order})
        peaks.append(_peaks())
    taken = {
        name: Steps(*(tuple(each[name][i] for each in rounds) for i in range(2))) for name in NAMES
    }
    ours = taken["mae"]
    work = step_flops(config, ObjectiveConfig()) * batch / 1e9
    return Sized(
        size=size,
        batch=batch,
        rate=Spread.of([batch / seconds for seconds in ours.whole]),
        whole={peer: _ratio(taken[peer].whole, ours.whole) for peer in PEERS},
        model={peer: _ratio(taken[peer].models, ours.models) for peer in PEERS},
        ours_updating={
            peer: _ratio(
                tuple(m + u for m, u in zip(taken[peer].models, ours.updates, strict=True)),
                ours.whole,
            )
            for peer in PEERS
        },
        update_share=sum(ours.updates) / sum(ours.whole),
        gflops=Spread.of([work / seconds for seconds in ours.whole]),
        peak_gflops={name: max(each[name] for each in peaks) for name in peaks[0]},
        kept_bytes=kept,
        peak_bytes={name: _alone(name, size) for name in NAMES},
    )


def _ratio(theirs: tuple[float, ...], ours: tuple[float, ...]) -> Spread:
    return Spread.of([t / o for t, o in zip(theirs, ours, strict=True)])


def _timed(side: Side, batch: Batch) -> tuple[float, float]:
    before, began = side.updating, time.perf_counter()
    loss = side.step(batch)
    seconds = time.perf_counter() - began
    if not torch.isfinite(loss):
        raise RuntimeError(f"{side.name}: the loss is not finite")
    return seconds, side.updating - before


def _peaks() -> dict[str, float]:
    """Give 10^9 operations a second of both products of a CPU, at a shape that suits them."""
    square = torch.ones(PEAK_EDGE, PEAK_EDGE)
    bias = torch.zeros(PEAK_EDGE)
    found = {}
    for name, multiply in (
        ("torch", lambda: square @ square),
        ("ours", lambda: linear(square, square, bias)),
    ):
        multiply()
        began = time.perf_counter()
        multiply()
        found[name] = 2 * PEAK_EDGE**3 / (time.perf_counter() - began) / 1e9
    return found


def saved_bytes(side: Side, batch: Batch) -> int:
    """Count the bytes that a forward keeps for its backward, weights left out."""
    return kept_for_backward(side.model, lambda: side.loss(batch))


def _alone(name: str, size: str) -> int:
    """Train one side in a process of its own and give its peak."""
    command = [sys.executable, "-m", "benchmarks.step", "--sizes", size, "--alone", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: int = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_bytes(name: str, size: str) -> int:
    """Make a few steps, and give the most memory this process took beyond what it imported."""
    config, batch = SIZES[size]
    make_side(name, *_SMALLEST)  # imports what there is to import
    before = process_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is counted from here
    side, images = make_side(name, config, batch), make_batch(name, config, batch)
    for _ in range(3):
        side.step(images)
    return process_bytes("VmHWM") - before


_SMALLEST = (SIZES["tiny"][0], 1)
