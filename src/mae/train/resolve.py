"""What a run needs settled before its first step."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from mae.config.run import FinetuneConfig, FitConfig, PixelConfig, PretrainConfig, settle_crop_pct
from mae.data.augment.randaugment import Policy
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.batching.loader import MADE_AHEAD
from mae.data.batching.readers import why_no_readers
from mae.data.decoding.decode import PagesKind, PixelKind
from mae.data.sources.source import ArraySource, Source
from mae.data.survey import measure_pixels, survey
from mae.errors import ConfigError
from mae.model.classifier import Classifier
from mae.model.costs import step_flops
from mae.model.transformer import Blocks
from mae.planning.hardware import choose_device, cores
from mae.runs.state import TrainState
from mae.train.optim.parameter_groups import adamw, choose_trained
from mae.train.resolution_schedule import Stage, stages
from mae.train.schedule import rate_at
from mae.train.step import Loss, OptimiserStep, pretraining_loss

ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig)

RATE_STEPS, RATE_SECONDS = 10, 3.0  # the least of both measures the rate for --minutes
WARM_SECONDS = 1.0  # not counted: the first steps allocate, and wait for caches to fill
_PROBED_FLOPS = 2e10  # of a step whose rate is measured on a CPU: a fraction of a second


def resolve(
    config: PretrainConfig,
    source: Source,
    *,
    say: Callable[[str], None],
    known: PixelConfig | None = None,
) -> tuple[PretrainConfig, PixelKind]:
    """Settle what follows from the pictures: channels, type, scaling, and a batch that fits.

    The fraction of an image that evaluation keeps follows from the crops. A scaling that is known
    already is kept where it is of pictures of this kind.
    """
    kind = survey(source, channels=config.channels, max_bad=config.max_bad, say=say)
    if config.channels is not None and config.channels != kind.channels:
        # Grey pictures can be asked for as colour, and the other way round; other counts cannot.
        if {config.channels, kind.channels} != {1, 3}:
            raise ConfigError(
                f"channels: asked for {config.channels}, but the pictures have {kind.channels}; "
                "drop --channels, or choose other pictures"
            )
        kind = kind._replace(channels=config.channels)
    same = known is not None and PixelKind(known.dtype, len(known.mean)) == kind
    pixels = known if same and not config.measure_pixels else None
    pixels = pixels or pixels_of(source, kind, measured=config.measure_pixels)
    pixels = dataclasses.replace(pixels, tiff_pages=isinstance(kind, PagesKind))
    model = dataclasses.replace(config.model, channels=kind.channels, pixels=pixels)
    model = settle_crop_pct(model, config.augment)
    batch = config.batch
    if len(source) < batch:
        batch = len(source) // config.views_per_decode * config.views_per_decode
        say(f"batch: lowered from {config.batch} to {batch}, the pictures there are")
    if config.views_per_decode > 1 and isinstance(source, ArraySource):
        say("views_per_decode: pictures in memory are not decoded; it only changes their order")
    return dataclasses.replace(config, model=model, batch=batch), kind


def pixels_of(source: Source, kind: PixelKind, *, measured: bool = False) -> PixelConfig:
    """Give the scaling of pixels: ImageNet's for colour, else, or if asked for, as measured."""
    if kind.channels == 3 and not measured:
        return PixelConfig(dtype=kind.dtype)
    mean, std = measure_pixels(source, kind=kind)
    return PixelConfig(dtype=kind.dtype, mean=mean, std=std)


def batch_plan(
    config: PretrainConfig | FinetuneConfig, source: Source, kind: PixelKind
) -> BatchPlan:
    """Give what the training batches of a run are a function of."""
    plan = BatchPlan(
        source=source,
        kind=kind,
        size=config.model.image_size,
        num_patches=config.model.num_patches,
        augment=config.augment,
        batch=config.batch,
        seed=config.seed,
    )
    if isinstance(config, PretrainConfig):
        return dataclasses.replace(plan, views_per_decode=config.views_per_decode)
    text, mean = config.rand_augment, config.model.pixels.mean
    return dataclasses.replace(
        plan,
        num_patches=0,  # nothing is masked
        num_drops=2 * config.model.depth if config.drop_path else 0,
        policy=None if text is None else Policy(text, mean),
    )


def new_state(model: nn.Module, config: PretrainConfig | FinetuneConfig) -> TrainState:
    """Make a state at step 0 on the device that the configuration asks for."""
    device = choose_device(config.device)
    model = model.to(device).train()
    for part in model.modules():
        if isinstance(part, Blocks):
            part.checkpoint_every = config.checkpoint_every
    scaler = torch.amp.GradScaler(device.type) if config.half == "fp16" else None
    if isinstance(config, PretrainConfig):
        return TrainState(model, adamw(model, config.optim), scaler=scaler)
    assert isinstance(model, Classifier)
    choose_trained(model, config.train_blocks)
    layers = {"layer_decay": config.layer_decay, "depth": config.model.depth}
    return TrainState(model, adamw(model, config.optim, **layers), scaler=scaler)  # type: ignore[arg-type]


def device_of(state: TrainState) -> torch.device:
    """Give the device a state lives on."""
    return next(state.model.parameters()).device


def settle_precision(
    config: ConfigT, *, has_bf16: bool, begun: Mapping[str, Any] | None = None
) -> ConfigT:
    """Turn a precision of "auto" into one, before anything is recorded.

    Never into fp16, whose range is short and whose loss has to be scaled: that is asked for.

    Args:
        config: whose other precisions stay.
        has_bf16: whether the device does.
        begun: record of the run that is gone on with, whose precision is kept.
    """
    if config.precision != "auto":
        return config
    best = "bf16" if has_bf16 else "float32"
    chosen = best if begun is None else begun["config"].get("precision", best)
    return dataclasses.replace(config, precision=chosen)  # type: ignore[arg-type]


def choose_workers(
    config: FitConfig, plan: BatchPlan, device: torch.device, *, say: Callable[[str], None]
) -> int:
    """Choose how many processes read: none where the images are in memory or a CPU trains.

    Else one a core, up to 16, as long as the batches that they make ahead take at most a quarter
    of the memory and half of what is left of the part that processes share. None, and that is
    said, where this script cannot have any.
    """
    workers = config.workers
    if workers is None:
        if isinstance(plan.source, ArraySource) or device.type == "cpu":
            return 0
        ahead = MADE_AHEAD * plan.batch_bytes
        workers = min(16, cores(), max(1, int(_room_for_batches() // ahead)))
    if workers and (reason := why_no_readers(plan.source)):
        say(reason)
        return 0
    return workers


def _room_for_batches() -> int:
    """Give the bytes that batches made ahead may take."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    shared = Path("/dev/shm")  # where Linux keeps what processes share; 64 MB in many containers
    return min(room, shutil.disk_usage(shared).free // 2) if shared.is_dir() else room


class Rehearsal(NamedTuple):
    """How a step of a run is made, to measure how long it takes."""

    loss: Loss = pretraining_loss
    prepare: Callable[[Batch, int], Batch] = lambda batch, step: batch
    """Changes the batch of a step before it is split."""


def measuring(minutes: float) -> str:
    """Say that the rate is about to be measured, in which nothing is seen to happen."""
    least = WARM_SECONDS + RATE_SECONDS
    return f"measuring the rate for {least:g} s or more: how many steps {minutes:g} minutes hold"


def count_steps(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> int:
    """Give the optimiser steps of the run, which --epochs, --steps or --minutes ask for."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return measured_steps(config, plan, minutes=config.minutes, model=model, how=how)
    return max(1, round(config.epochs * plan.batches_per_epoch))


def measured_steps(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    *,
    minutes: float,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> int:
    """Measure the rate on throw-away steps and give the steps that fit into the minutes."""
    seconds = step_seconds(config, plan, model, how)
    return max(1, int(minutes * 60 / seconds))


def step_seconds(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
    *,
    warm: float = WARM_SECONDS,
    least: int = RATE_STEPS,
    seconds: float = RATE_SECONDS,
) -> float:
    """Measure how long a step takes, on steps that are thrown away; the mean of a run's parts.

    Args:
        config: of the run.
        plan: what its batches are made by.
        model: before the run; it stays as it is.
        how: what is done in a step.
        warm: seconds that do not count, at least one step.
        least: steps of each part that count.
        seconds: least time of each part.
    """
    with throw_away_steps(config, model, how) as step:

        def rate_of(stage: Stage) -> float:
            def take(number: int) -> None:
                step(training_batch(stage.plan, number), number)

            times_a_second(lambda _: take(0), least=1, seconds=warm)
            return times_a_second(take, least=least, seconds=seconds)

        return sum(stage.share / rate_of(stage) for stage in stages(config, plan))


@contextmanager
def throw_away_steps(
    config: PretrainConfig | FinetuneConfig,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> Iterator[Callable[[Batch, int], object]]:
    """Give a function that makes a step of a batch and its number as training would."""
    # A copy: without a warm-up, the very first rate already changes the weights.
    state = new_state(copy.deepcopy(model), config)
    step = OptimiserStep(loss=how.loss, config=config, device=device_of(state))
    rate = rate_at(0, num_steps=100, config=config, batch=config.batch)
    with step.side_by_side():
        yield lambda batch, number: step(state, how.prepare(batch, number), lr=rate)


def times_a_second(
    act: Callable[[int], object],
    *,
    least: int,
    seconds: float,
    finish: Callable[[], object] = lambda: None,
) -> float:
    """Do something with 0, 1, 2 and so on, and give how often a second it was done.

    Args:
        act: what is done.
        least: times, unless they take more than ten times the seconds.
        seconds: least time.
        finish: waits for what may not be done yet.
    """
    began, done, passed = time.perf_counter(), 0, 0.0
    while (done < least or passed < seconds) and passed <= 10 * seconds:
        act(done)
        done += 1
        passed = time.perf_counter() - began
    finish()
    return done / (time.perf_counter() - began)


def few_pictures(
    config: PretrainConfig, device: torch.device, *, flops: float | None = None
) -> PretrainConfig:
    """Lower the batch of a step that is measured: a CPU would take minutes over a large one.

    As many micro-batches are side by side as in the whole batch.

    Args:
        config: of the run.
        device: another than a CPU takes the whole batch.
        flops: operations of a step, at most, if two images are not more; none: as few as tell
            how fast a step is.
    """
    if device.type != "cpu":
        return config
    views = config.views_per_decode
    wanted = max(2, views, int((flops or _PROBED_FLOPS) // step_flops(config.model)))
    pictures = min(config.batch, wanted // views * views)
    micro_batch = config.fixed_micro_batch or config.batch
    side_by_side = min(torch.get_num_threads(), -(-config.batch // micro_batch))
    micro_batch = min(micro_batch, -(-pictures // side_by_side))
    return dataclasses.replace(config, batch=pictures, micro_batch=micro_batch)
