"""Time and memory of whole steps, in turn in one process and each in one of its own."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.claim.sides import SIDES, Side, make_sides
from benchmarks.memory import saved_bytes
from mae.config.model import ModelConfig
from mae.config.run import OptimConfig
from mae.config.sizes import model_config
from mae.train.optim.parameter_groups import create_optimizer

RATE = 1e-4


class Steps:
    """Whole steps of networks that share weights, by one optimiser, on one batch.

    An update leaves parameters without a gradient alone, so a side updates its own and no other.
    """

    def __init__(
        self, config: ModelConfig, sides: Sequence[Side], *, batch: int, device: torch.device
    ) -> None:
        self.models = {side: model.to(device) for side, model in make_sides(config, sides).items()}
        self.optimizer = create_optimizer(nn.ModuleList(self.models.values()), OptimConfig(lr=RATE))
        self.device = device
        generator = torch.Generator().manual_seed(0)
        shape = (batch, config.channels, *config.image_size)
        self.images = torch.randn(shape, generator=generator).to(device)
        self.noise = torch.rand(batch, config.num_patches, generator=generator).to(device)

    def seconds(self, side: Side) -> tuple[float, float]:
        """Make a step; give the seconds of all of it, and without the update.

        Raises:
            RuntimeError: if the loss is not finite.
        """
        began = self._now()
        loss = self.models[side](self.images, noise=self.noise).loss
        loss.backward()
        computed = self._now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ended = self._now()
        if not loss.isfinite():
            raise RuntimeError(f"loss: got {loss.item()}, expected a finite one")
        return ended - began, computed - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_bytes(config: ModelConfig, side: Side, *, batch: int, device: torch.device) -> int:
    """Measure the memory that two steps of one network take at most; in a process of its own.

    On a CPU all that the process ever held, Python and torch too; on a GPU what torch gave out.
    """
    steps = Steps(config, [side], batch=batch, device=device)
    for _ in range(2):  # the first ends with moments, beside which the second computes
        steps.seconds(side)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return most_held()


def most_held() -> int:
    """Read the most bytes that this process ever held."""
    # Not getrusage: that begins with what the process which started this one held.
    return process_bytes("VmHWM")


def process_bytes(name: str) -> int:
    """Read what the kernel counts of this process: VmRSS, what it holds; VmHWM, at the most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def peak_bytes_elsewhere(
    config: ModelConfig, side: Side, *, batch: int, device: torch.device
) -> int:
    """Measure `peak_bytes` in a new process, which has held nothing yet."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(peak_bytes, config, side, batch=batch, device=device).result()


class Measured(NamedTuple):
    """What the four networks of a size took."""

    model: str
    batch: int
    seconds: dict[Side, list[tuple[float, float]]]
    """Of each step, in turn: all of it, and without the update."""
    saved_bytes: dict[Side, float]
    """Kept by the forward for the backward, of an image."""
    peak_bytes: dict[Side, int]
    """Of a process that makes these steps alone."""


def measure(model: str, *, batch: int, pairs: int, device: torch.device) -> Measured:
    """Measure memory side by side in processes of their own, then time in turn in this one."""
    config = model_config(model)
    peaks = {}
    for side in SIDES:
        say(f"{model}: memory {1 + len(peaks)} of {len(SIDES)}")
        peaks[side] = peak_bytes_elsewhere(config, side, batch=batch, device=device)
    steps = Steps(config, SIDES, batch=batch, device=device)
    images = torch.zeros(2, config.channels, *config.image_size, dtype=torch.uint8).to(device)
    saved = {
        side: saved_bytes(each, images, steps.noise[:1].expand(2, -1))  # type: ignore[arg-type]
        for side, each in steps.models.items()
    }
    seconds: dict[Side, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for side in SIDES:
        steps.seconds(side)  # the first steps allocate
    for number in range(pairs):
        say(f"{model}: round {1 + number} of {pairs}")
        for side in SIDES if number % 2 else reversed(SIDES):
            seconds[side].append(steps.seconds(side))
    return Measured(model, batch, seconds, saved, peaks)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)
