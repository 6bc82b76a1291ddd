"""Benchmark of data loading on one core: rate of each stage, bottleneck, cores per GPU."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mae.config.model import require
from mae.config.run import PretrainConfig
from mae.data.augment.crop import CROP_DRAWS
from mae.data.augment.decode_and_crop import random_crops
from mae.data.batching.batch import (
    BatchPlan,
    SourceReader,
    channels_first,
    crop_small_images,
    crops_as_batch,
    read_small_images,
    training_batch,
)
from mae.data.decoding.decode import BadImage, decode
from mae.data.sampling.draws import Stream, uniform
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource
from mae.planning.hardware import choose_device, cores, use_threads
from mae.progress import Progress
from mae.train.resolve import batch_plan, resolve

GPU_RATES = {"ViT-B/16": 8460.0, "ViT-L/16": 3980.0, "ViT-H/14": 1700.0}
"""Estimated training rates of an H100 at half of its bf16 peak: 224 x 224 images per second."""

LEAST_ROUNDS = 2
TOGETHER = "all together"
WAITING = ("read", "transfer")
"""Stages that wait for a disk or a device, timed in wall time."""


class DataBench(NamedTuple):
    """Speed of data loading on one core."""

    seconds: dict[str, float]
    """Per image, by stage; `TOGETHER` from disk to batch, as the loader does it."""
    device: str
    asked: dict[str, float]
    """Required images per second, by consumer."""
    unreadable: int

    @property
    def stages(self) -> list[str]:
        """Names of the stages, in order."""
        return [name for name in self.seconds if name != TOGETHER]

    @property
    def bottleneck(self) -> str:
        """Name of the slowest stage."""
        return max(self.stages, key=self.seconds.__getitem__)

    def cores_needed(self) -> dict[str, int]:
        """Return the cores that each consumer needs."""
        whole = self.seconds[TOGETHER]
        return {name: math.ceil(rate * whole) for name, rate in self.asked.items()}

    def values(self) -> dict[str, Any]:
        """Return all results for JSON."""
        return {
            "images_per_second": {name: 1 / spent for name, spent in self.seconds.items()},
            "milliseconds": {name: 1000 * spent for name, spent in self.seconds.items()},
            "wall": self.bottleneck,
            "device": self.device,
            "cores": cores(),
            "cores_needed": self.cores_needed(),
            "unreadable": self.unreadable,
        }

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table."""
        total = sum(self.seconds[name] for name in self.stages)
        yield "stage", "ms an image", "images/s of one core", "fraction"
        for name in (*self.stages, TOGETHER):
            spent = self.seconds[name]
            fraction = "" if name == TOGETHER else f"{spent / total:.0%}"
            yield name, f"{1000 * spent:.3f}", f"{1 / spent:,.0f}", fraction
        yield ("",)
        yield (f"the bottleneck is {self.bottleneck}; this machine has {cores()} cores",)
        for name, count in self.cores_needed().items():
            yield (f"{self.asked[name]:,.0f} images/s ({name}): {count} cores",)
        if self.unreadable:
            yield (f"{self.unreadable} images could not be read and were left out",)


def bench_data(
    data: Data,
    config: PretrainConfig,
    *,
    images_per_second: float | None = None,
    seconds: float = 10.0,
    quiet: bool = False,
) -> DataBench:
    """Measure data loading on one core, stage by stage, in the order of the first epoch.

    Every other batch is made in one go instead, as the loader makes it. Reading and transfer are
    timed in wall time, the rest in CPU time.

    Args:
        data: whatever `open_source` takes.
        config: batch size, image size and augmentation.
        images_per_second: rate to compute the cores for; none: estimates for the paper's models.
        seconds: approximate measuring time.
        quiet: show no notes.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    for name, value in (("seconds", seconds), ("images_per_second", images_per_second)):
        require(value is None or 0 < value < math.inf, name, value, "a number above 0")
    with Progress(quiet=quiet) as progress, use_threads(1):
        source = open_source(data, log=progress.note)
        device = choose_device(config.device)
        resolved = resolve(config, source)
        for note in resolved.notes:
            progress.note(note)
        plan = batch_plan(resolved.config, source, resolved.kind)
        progress.note(f"measuring {plan.batch} images at a time for {seconds:g} s on one core")
        training_batch(plan, 0)  # the first call loads libraries
        spent, unreadable = defaultdict[str, float](float), set[int]()
        rounds, began = 0, time.perf_counter()
        while rounds < LEAST_ROUNDS or time.perf_counter() - began < seconds:
            _stage_by_stage(plan, 2 * rounds, device, spent, unreadable)
            with _timed(spent, TOGETHER):
                training_batch(plan, 2 * rounds + 1)
            rounds += 1
    asked = {f"{name} on an H100, an estimate": rate for name, rate in GPU_RATES.items()}
    if images_per_second is not None:
        asked = {"asked for": images_per_second}
    each = {name: total / (rounds * plan.batch) for name, total in spent.items()}
    return DataBench(each, device.type, asked, len(unreadable))


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU time of a block, which other load does not change, or its wall time."""
    clock = time.perf_counter if name in WAITING else time.process_time
    began = clock()
    yield
    spent[name] += clock() - began


def _stage_by_stage(
    plan: BatchPlan, number: int, device: torch.device, spent: dict[str, float], bad: set[int]
) -> None:
    """Make a batch as `training_batch` does, each stage on its own."""
    epoch, ids = plan.batch_ids(number)
    draw = partial(uniform, plan.seed, epoch, ids)
    draws = draw(stream=Stream.CROP, count=CROP_DRAWS)
    flips = draw(stream=Stream.FLIP, count=1)[:, 0] < plan.augment.flip
    images = list[NDArray[Any]]()
    if crops_as_batch(plan):
        # For images in memory the lookup counts as part of cropping.
        with _timed(spent, "augment" if isinstance(plan.source, ArraySource) else "read"):
            stored, _ = read_small_images(plan, epoch, ids, SourceReader(plan.source))
        with _timed(spent, "augment"):
            images += [*crop_small_images(plan, stored, draws, flips)]
    else:
        how = {"kind": plan.kind, "size": plan.size, "augment": plan.augment}
        for place, index in enumerate(ids.tolist()):
            try:
                with _timed(spent, "read"):
                    data = plan.source.read(index)
                with _timed(spent, "decode"):
                    pixels = decode(data, kind=plan.kind)
            except BadImage:
                bad.add(index)
                continue
            with _timed(spent, "augment"):
                one = slice(place, place + 1)
                images += random_crops(pixels, draws[one], flips[one], **how)  # type: ignore[arg-type]
    if not images:
        return
    with _timed(spent, "collate"):
        tensors = channels_first(np.stack(images)), plan.noise(ids, epoch=epoch)
    if device.type != "cpu":
        with _timed(spent, "transfer"):
            for tensor in tensors:
                pinned = tensor.pin_memory() if device.type == "cuda" else tensor
                pinned.to(device, non_blocking=True)
            torch.accelerator.synchronize(device)
