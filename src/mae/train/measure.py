"""Time training steps and data loading, on a copy of the model whose updates are discarded."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from mae.config.detect import DetectConfig
from mae.config.kinds import AnyRunConfig
from mae.config.run import PretrainConfig, TransferConfig
from mae.config.segment import SegmentConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.batching.loader import MADE_AHEAD, batches, on_device
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import Source
from mae.errors import MaeError
from mae.model.costs import encoder_flops, step_flops
from mae.model.create import create
from mae.planning.estimate import Estimate, num_steps
from mae.planning.hardware import choose_device
from mae.progress import minutes_in_words
from mae.train.allocator import kept_memory
from mae.train.detect_batch import detect_loss
from mae.train.finetune_batch import finetune_batch, soft_target_loss
from mae.train.resolution_schedule import Stage, stages
from mae.train.resolve import batch_plan, device_of, new_state
from mae.train.segment_batch import segment_loss
from mae.train.step import Loss, OptimiserStep, pretraining_loss

RunConfig = TypeVar("RunConfig", bound=AnyRunConfig)

RATE_STEPS, RATE_SECONDS = 10, 3.0  # at least both, to measure the rate for --minutes
QUICK_STEPS, QUICK_SECONDS = 3, 1.5  # at least both, for an estimate
ROUNDS = 2
"""How often loader and both together are measured in turn; the step alone is measured before the
first round and after the last, when no reader process runs."""
_STEP_FLOPS = 5e10  # of a step measured on a CPU: about a second
_MANY = 10**9  # more batches than any measurement takes


class StepRecipe(NamedTuple):
    """What a step of a run computes."""

    loss: Loss = pretraining_loss
    prepare: Callable[[Batch, int], Batch] = lambda batch, step: batch
    """Transforms the batch of a step before it is split."""
    micro_batch: int | None = None
    """Images of one pass; none: as configured, or else the whole batch."""


def step_recipe(config: AnyRunConfig, plan: BatchPlan, device: torch.device) -> StepRecipe:
    """Return what a step of a run on a device computes."""
    if isinstance(config, PretrainConfig):
        return StepRecipe()
    if isinstance(config, SegmentConfig):
        return StepRecipe(segment_loss(config))
    if isinstance(config, DetectConfig):
        return StepRecipe(detect_loss(config))

    def prepare(batch: Batch, step: int) -> Batch:
        return finetune_batch(batch, plan, config, step=step, device=device)

    return StepRecipe(soft_target_loss, prepare)


class Measurement(NamedTuple):
    """Measured loader and step of a run, alone and together."""

    loader: float
    """Images per second."""
    step: float
    """Images per second."""
    both: float
    """Images per second."""
    images_per_step: int
    """On a CPU fewer than a step of the run has."""
    reader_seconds_per_image: float
    """Time of one process to read and prepare an image."""
    reader_busy_seconds_per_image: float
    """CPU time of the same; the rest is waiting for the source."""
    workers: int
    threads: int
    unreadable: int
    others_waiting: float
    """Other runnable threads per core."""


def count_steps(
    config: AnyRunConfig,
    plan: BatchPlan,
    model: nn.Module,
    recipe: StepRecipe = StepRecipe(),  # noqa: B008
    *,
    log: Callable[[str], object] = lambda line: None,
    measured: Callable[[], float] | None = None,
) -> int:
    """Return the optimiser steps of the run; with --minutes, measure the rate first.

    Args:
        config: configuration of the run.
        plan: defines the batches.
        model: the model before the run; not changed.
        recipe: loss and preparation of a batch.
        log: prints one line for the user.
        measured: measures the seconds of a step; None: on a copy of the model.
    """
    seconds = math.nan
    if config.minutes is not None:
        least = f"{RATE_SECONDS * 4 / 3:g} s or more"
        hold = f"{minutes_in_words(config.minutes)} hold"
        log(f"measuring the rate for {least}: how many steps {hold}")
        measured = measured or partial(step_seconds, config, plan, model, recipe)
        seconds = measured()
    steps = num_steps(config, plan.batches_per_epoch, seconds)
    assert steps is not None
    return steps


def with_measured_rate(
    estimate: Estimate,
    source: Source,
    kind: PixelKind,
    *,
    log: Callable[[str], None],
    model: nn.Module | None = None,
) -> Estimate:
    """Measure the rate of a run on this machine, if the run fits.

    If too many images in a row are unreadable, the estimate is returned as it is.

    Args:
        estimate: of the run on this machine.
        source: the images.
        kind: type and channels of the images.
        log: prints one line for the user.
        model: the model before the run, not changed; None: a new one, of pre-training.
    """
    if not estimate.largest_micro_batch:
        return estimate
    config, device = estimate.config, torch.device(estimate.machine.device)
    few = few_images(dataclasses.replace(config, micro_batch=estimate.micro_batch), device)
    if model is None:
        assert isinstance(config, PretrainConfig)
        model = create(config.model, objective=config.objective, seed=config.seed)
    plan, quick = batch_plan(few, source, kind), (QUICK_STEPS, QUICK_SECONDS)
    log(f"measuring the rate of this machine, {few.batch} images a step ...")
    try:
        rate = few.batch / step_seconds(
            few, plan, model, step_recipe(few, plan, device), at_least=quick
        )
    except (MaeError, torch.OutOfMemoryError) as error:
        log(str(error).splitlines()[0])
        return estimate
    on = f"on this machine's {device.type}, steps of {few.batch}"
    note = "; ".join((on, *busy_note(others_waiting(device))))
    return estimate._replace(measured_rate=rate, measured_on=note)


def step_seconds(
    config: AnyRunConfig,
    plan: BatchPlan,
    model: nn.Module,
    recipe: StepRecipe = StepRecipe(),  # noqa: B008
    *,
    at_least: tuple[int, float] = (RATE_STEPS, RATE_SECONDS),
) -> float:
    """Measure the seconds of a step on discarded steps; the mean over a run's stages.

    Args:
        config: configuration of the run.
        plan: defines the batches.
        model: the model before the run; not changed.
        recipe: loss and preparation of a batch.
        at_least: measured steps and seconds of each stage, after a warm-up of a third.
    """
    with discarded_steps(config, model, recipe) as step:
        return seconds_of_steps(step, config, plan, at_least=at_least)


def seconds_of_steps(
    step: Callable[[Batch, int], object],
    config: AnyRunConfig,
    plan: BatchPlan,
    *,
    at_least: tuple[int, float] = (RATE_STEPS, RATE_SECONDS),
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure the seconds of a step (batch, number), as `step_seconds`; `clock` in seconds."""
    least, seconds = at_least

    def rate_of(stage: Stage) -> float:
        def take(number: int) -> None:
            step(training_batch(stage.plan, number), number)

        calls_per_second(lambda _: take(0), least=1, seconds=seconds / 3, clock=clock)
        return calls_per_second(take, least=least, seconds=seconds, clock=clock)

    return sum(stage.fraction / rate_of(stage) for stage in stages(config, plan))


def measure(
    config: PretrainConfig, plan: BatchPlan, model: nn.Module, *, workers: int, seconds: float
) -> Measurement:
    """Measure loader and step of a pre-training run, alone and together.

    Args:
        config: configuration of the run, with the batch of `few_images`.
        plan: defines the batches.
        model: the model before the run; not changed.
        workers: reader processes.
        seconds: approximate time in seconds.
    """
    device, part, bad = choose_device(config.device), seconds / (2 * ROUNDS + 2), set[int]()
    readers = max(1, workers)
    reader_seconds, busy_seconds = _reader_seconds(plan, seconds=part / 2)

    def rate(act: Callable[[], object], *, calls: int = 1) -> float:
        def group(_: int) -> None:
            for _ in range(calls):
                act()

        return plan.batch * calls * calls_per_second(group, least=2, seconds=part)

    with discarded_steps(config, model) as step:
        again = next(on_device(iter([training_batch(plan, 0)]), device))
        repeat = partial(step, again, 0)
        calls_per_second(lambda _: repeat(), least=1, seconds=min(part, 1.0))
        alone, loader, both = [rate(repeat)], list[float](), list[float]()
        feed = batches(plan, start=0, stop=_MANY, workers=workers)
        with closing(feed):  # type: ignore[type-var]  # a generator; ends the readers
            fed = on_device(feed, device)

            def take() -> Batch:
                batch = next(fed)
                bad.update(image.id for image in batch.bad)
                return batch

            for _ in range(ROUNDS):
                # Drain prefetched batches first; they would inflate the rate. After the loader
                # alone none are left.
                for _ in range(MADE_AHEAD * workers + (device.type == "cuda")):
                    take()
                # Readers that start together finish together: count whole rounds.
                loader.append(rate(take, calls=readers))
                both.append(rate(lambda: step(take(), 0), calls=readers))
        alone.append(rate(repeat))
    return Measurement(
        loader=fmean(loader),
        step=fmean(alone),
        both=fmean(both),
        images_per_step=plan.batch,
        reader_seconds_per_image=reader_seconds,
        reader_busy_seconds_per_image=busy_seconds,
        workers=workers,
        threads=torch.get_num_threads(),
        unreadable=len(bad),
        others_waiting=others_waiting(device),
    )


def _reader_seconds(plan: BatchPlan, *, seconds: float) -> tuple[float, float]:
    """Time this process making batches: wall time and CPU time per image, in seconds.

    Time in which other processes had the CPU counts neither as work nor as waiting for the source.
    """
    training_batch(plan, 0)  # the first call loads libraries
    began, wall, busy = time.perf_counter(), _seconds_with_a_cpu(), time.process_time()
    done = 0
    while not done or time.perf_counter() - began < seconds:
        done += 1
        training_batch(plan, done)
    images, busy = done * plan.batch, time.process_time() - busy
    return max(busy, _seconds_with_a_cpu() - wall) / images, busy / images


def _seconds_with_a_cpu() -> float:
    """Return wall time less the time this thread was runnable without a CPU, if recorded."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        queued = 0.0
    return time.perf_counter() - queued


@contextmanager
def discarded_steps(
    config: AnyRunConfig,
    model: nn.Module,
    recipe: StepRecipe = StepRecipe(),  # noqa: B008
) -> Iterator[Callable[[Batch, int], object]]:
    """Yield a function (batch, step number) that runs a training step on a copy of the model."""
    # A copy: even at a learning rate of 0, gradients and moments are stored with it.
    state = new_state(copy.deepcopy(model), config)
    device, micro_batch = device_of(state), recipe.micro_batch
    step = OptimiserStep(loss=recipe.loss, config=config, device=device, micro_batch=micro_batch)
    with kept_memory(device), step.side_by_side():
        yield lambda batch, number: step(state, recipe.prepare(batch, number), lr=0.0)


def calls_per_second(
    act: Callable[[int], object],
    *,
    least: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Call `act` with 0, 1, 2 and so on, and return the calls per second.

    Args:
        act: function to time.
        least: minimum number of calls, unless they take more than ten times `seconds`.
        seconds: minimum time.
        clock: returns seconds.
    """
    began, done, passed = clock(), 0, 0.0
    while (done < least or passed < seconds) and passed <= 10 * seconds:
        act(done)
        done += 1
        passed = clock() - began
    if torch.accelerator.is_available():  # wait for asynchronous work
        torch.accelerator.synchronize()
    return done / (clock() - began)


def few_images(config: RunConfig, device: torch.device) -> RunConfig:
    """Lower the batch of a measured step: a CPU would take minutes for a large one.

    The number of parallel micro-batches stays that of the whole batch.

    Args:
        config: configuration of the run.
        device: any device but a CPU measures the whole batch.
    """
    if device.type != "cpu":
        return config
    if isinstance(config, TransferConfig):
        views, flops = 1, 3 * encoder_flops(config.model)
    else:
        views, flops = config.views_per_decode, step_flops(config.model, config.objective)
    images = min(config.batch, max(2, views, int(_STEP_FLOPS // flops)) // views * views)
    micro_batch = config.fixed_micro_batch or config.batch
    side_by_side = min(torch.get_num_threads(), -(-config.batch // micro_batch))
    micro_batch = min(micro_batch, -(-images // side_by_side))
    return dataclasses.replace(config, batch=images, micro_batch=micro_batch)


def others_waiting(device: torch.device) -> float:
    """Return the number of other runnable threads per core; 0 on a GPU, which they do not use."""
    if device.type != "cpu":
        return 0.0
    return max(0.0, os.getloadavg()[0] - torch.get_num_threads()) / (os.cpu_count() or 1)


def busy_note(others: float) -> Iterator[str]:
    """Yield a note if other threads slowed a measurement down."""
    if others > 1:
        yield f"machine busy: load {others:.1f} per core, so this estimate is too slow"
