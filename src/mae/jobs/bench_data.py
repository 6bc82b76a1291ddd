"""Benchmark of data loading on one core: rate of each stage, bottleneck, cores per GPU."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mae.config.run import PretrainConfig
from mae.data.augment.crop import CROP_DRAWS, random_box, resized_crop
from mae.data.batching.batch import (
    BatchPlan,
    channels_first,
    crop_small_images,
    crops_as_batch,
    read_small_images,
    training_batch,
)
from mae.data.decoding.decode import BadImage, decode
from mae.data.sampling.draws import Stream, uniform
from mae.data.sampling.masks import mask_noise
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError
from mae.planning.hardware import choose_device, cores, one_thread
from mae.progress import Progress
from mae.train.resolve import batch_plan, resolve

GPU_RATES = {"ViT-B/16": 8460, "ViT-L/16": 3980, "ViT-H/14": 1700}
"""Estimated training rates of an H100 at half of its bf16 peak: 224 x 224 images per second."""

LEAST_ROUNDS = 2
TOGETHER = "all together"
WAITING = ("read", "transfer")

T = TypeVar("T")


class Stage(NamedTuple):
    """Speed of one stage on one core."""

    name: str
    seconds: float
    """Per image."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return 1 / self.seconds


class DataBench(NamedTuple):
    """Speed of data loading on one core."""

    stages: tuple[Stage, ...]
    whole: Stage
    """From disk to batch, as the loader does it."""
    device: str
    asked: dict[str, float]
    """Required images per second, by consumer."""
    unreadable: int

    @property
    def wall(self) -> str:
        """Name of the slowest stage."""
        return max(self.stages, key=lambda stage: stage.seconds).name

    def cores_for(self, rate: float) -> int:
        """Return the number of cores needed for this many images per second."""
        return math.ceil(rate / self.whole.rate)

    def values(self) -> dict[str, Any]:
        """Return all results for --json."""
        timed = [*self.stages, self.whole]
        return {
            "images_per_second": {stage.name: stage.rate for stage in timed},
            "milliseconds": {stage.name: 1000 * stage.seconds for stage in timed},
            "wall": self.wall,
            "device": self.device,
            "cores": cores(),
            "cores_needed": {name: self.cores_for(rate) for name, rate in self.asked.items()},
            "unreadable": self.unreadable,
        }

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table."""
        total = sum(stage.seconds for stage in self.stages)
        yield "stage", "ms a picture", "pictures/s of one core", "share"
        for stage in self.stages:
            yield _row(stage, f"{stage.seconds / total:.0%}")
        yield _row(self.whole, "")
        yield ("",)
        yield (f"the wall is {self.wall}; this machine has {cores()} cores",)
        for name, rate in self.asked.items():
            yield (f"{rate:,.0f} pictures/s ({name}): {self.cores_for(rate)} cores",)
        if self.unreadable:
            yield (f"{self.unreadable} pictures could not be read and were left out",)


def _row(stage: Stage, share: str) -> tuple[str, ...]:
    return stage.name, f"{1000 * stage.seconds:.3f}", f"{stage.rate:,.0f}", share


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
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}: expected a number above 0, got {value}")
    with Progress(quiet=quiet) as progress, one_thread():
        source = open_source(data, log=progress.note)
        device = choose_device(config.device)
        config, kind = resolve(config, source, say=progress.note)
        plan = batch_plan(config, source, kind)
        progress.note(f"measuring {plan.batch} pictures at a time for {seconds:g} s on one core")
        training_batch(plan, 0)  # the first call loads libraries
        watch, began = _Watch(), time.perf_counter()
        for number in itertools.count():
            if number >= 2 * LEAST_ROUNDS and time.perf_counter() - began > seconds:
                break
            if number % 2:
                watch.timed(TOGETHER, partial(training_batch, plan, number))
            else:
                _stage_by_stage(plan, number, device, watch)
    asked = {f"{name} on an H100, an estimate": float(rate) for name, rate in GPU_RATES.items()}
    if images_per_second is not None:
        asked = {"asked for": images_per_second}
    rounds = {TOGETHER: number // 2}
    *stages, whole = (
        Stage(name, spent / plan.batch / rounds.get(name, number - number // 2))
        for name, spent in sorted(watch.spent.items(), key=lambda item: item[0] == TOGETHER)
    )
    return DataBench(tuple(stages), whole, device.type, asked, len(watch.unreadable))


@dataclass(slots=True)
class _Watch:
    """Seconds spent in each stage, and the ids of unreadable images."""

    spent: dict[str, float] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)

    def timed(self, name: str, run: Callable[[], T]) -> T:
        """Time a call in CPU time, which other load does not change, or in wall time.

        Stages that wait for a disk or a device need wall time.
        """
        clock = time.perf_counter if name in WAITING else time.process_time
        began = clock()
        result = run()
        self.spent[name] = self.spent.get(name, 0.0) + clock() - began
        return result

    def readable(self, ids: Sequence[int], look: Callable[[int], T]) -> dict[int, T]:
        """Apply `look` to each image and leave out those that cannot be read."""
        found = {}
        for index in ids:
            try:
                found[index] = look(index)
            except BadImage:
                self.unreadable.add(index)
        return found


def _stage_by_stage(plan: BatchPlan, number: int, device: torch.device, watch: _Watch) -> None:
    """Make a batch as `training_batch` does, but each stage for all images before the next."""
    epoch, ids = plan.batch_ids(number)

    def draw(stream: Stream, count: int) -> NDArray[np.float32]:
        return uniform(plan.seed, epoch, ids, stream=stream, count=count)

    draws, flips = draw(Stream.CROP, CROP_DRAWS), draw(Stream.FLIP, 1)[:, 0] < plan.augment.flip
    images = list[NDArray[Any]]()
    if crops_as_batch(plan):
        # For images in memory the lookup counts as part of cropping.
        stage = "augment" if isinstance(plan.source, ArraySource) else "read"
        stored, _ = watch.timed(stage, lambda: read_small_images(plan, epoch, ids, []))
        images = [*watch.timed("augment", lambda: crop_small_images(plan, stored, draws, flips))]
    else:
        read = watch.timed("read", lambda: watch.readable(ids.tolist(), plan.source.read))
        look = partial(watch.readable, [*read], lambda i: decode(read[i], kind=plan.kind))
        pictures = watch.timed("decode", look)
        places = {index: place for place, index in enumerate(ids.tolist())}
        for index, picture in pictures.items():
            cut = partial(_crop, plan, picture, draws[places[index]], flip=flips[places[index]])
            images.append(watch.timed("augment", cut))
    if not images:
        return

    def collate() -> tuple[torch.Tensor, torch.Tensor]:
        noise = mask_noise(ids, grid=plan.grid, seed=plan.seed, epoch=epoch)
        return channels_first(np.stack(images)), noise

    batch = watch.timed("collate", collate)
    if device.type != "cpu":
        watch.timed("transfer", lambda: _moved(batch, device))


def _crop(
    plan: BatchPlan, picture: NDArray[Any], draws: NDArray[np.float32], *, flip: np.bool_
) -> NDArray[Any]:
    height, width, _ = picture.shape
    box = random_box(height, width, draws.tolist(), plan.augment)
    return resized_crop(picture, box, size=plan.size, flip=bool(flip))


def _moved(batch: tuple[torch.Tensor, ...], device: torch.device) -> None:
    pinned = [value.pin_memory() if device.type == "cuda" else value for value in batch]
    for value in pinned:
        value.to(device, non_blocking=True)
    torch.accelerator.synchronize(device)
