"""Resolve a run's configuration before its first step: pixels, precision, workers, steps."""

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

RATE_STEPS, RATE_SECONDS = 10, 3.0  # at least both, to measure the rate for --minutes
WARM_SECONDS = 1.0  # not counted: the first steps allocate memory and fill caches
_PROBED_FLOPS = 2e10  # of a step measured on a CPU: a fraction of a second


def resolve(
    config: PretrainConfig,
    source: Source,
    *,
    say: Callable[[str], None],
    known: PixelConfig | None = None,
) -> tuple[PretrainConfig, PixelKind]:
    """Set the fields that follow from the images: channels, type, scaling, and a batch that fits.

    `crop_pct` follows from the crops. A `known` scaling is kept where it was made for images of
    this kind.
    """
    kind = survey(source, channels=config.channels, max_bad=config.max_bad, say=say)
    if config.channels is not None and config.channels != kind.channels:
        # Grey images can be read as colour and colour as grey; other counts cannot be converted.
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
    """Return the pixel scaling: ImageNet's for colour, else or with `measured` as measured."""
    if kind.channels == 3 and not measured:
        return PixelConfig(dtype=kind.dtype)
    mean, std = measure_pixels(source, kind=kind)
    return PixelConfig(dtype=kind.dtype, mean=mean, std=std)


def batch_plan(
    config: PretrainConfig | FinetuneConfig, source: Source, kind: PixelKind
) -> BatchPlan:
    """Return the plan that defines the training batches of a run."""
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
    """Create the training state at step 0 on the configured device."""
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
    """Return the device of a training state."""
    return next(state.model.parameters()).device


def settle_precision(
    config: ConfigT, *, has_bf16: bool, begun: Mapping[str, Any] | None = None
) -> ConfigT:
    """Replace a precision of "auto" by bf16 or float32, before anything is recorded.

    "auto" never selects fp16, which has a short range and needs loss scaling.

    Args:
        config: any other precision is kept.
        has_bf16: whether the device supports bf16.
        begun: record of the run to resume, whose precision is kept.
    """
    if config.precision != "auto":
        return config
    best = "bf16" if has_bf16 else "float32"
    chosen = best if begun is None else begun["config"].get("precision", best)
    return dataclasses.replace(config, precision=chosen)  # type: ignore[arg-type]


def choose_workers(
    config: FitConfig, plan: BatchPlan, device: torch.device, *, say: Callable[[str], None]
) -> int:
    """Choose the number of reader processes: 0 where images are in memory or a CPU trains.

    Otherwise one per core, up to 16, while the prefetched batches take at most a quarter of the
    memory and half of the free shared memory. 0, with a note, where the calling script cannot
    start processes.
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
    """Return the bytes available to prefetched batches."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    shared = Path("/dev/shm")  # shared memory on Linux; 64 MB in many containers
    return min(room, shutil.disk_usage(shared).free // 2) if shared.is_dir() else room


class Rehearsal(NamedTuple):
    """Loss and batch preparation of a run's step, to measure its time."""

    loss: Loss = pretraining_loss
    prepare: Callable[[Batch, int], Batch] = lambda batch, step: batch
    """Transforms the batch of a step before it is split."""


def measuring(minutes: float) -> str:
    """Return a note that the rate is being measured, which shows no progress."""
    least = WARM_SECONDS + RATE_SECONDS
    return f"measuring the rate for {least:g} s or more: how many steps {minutes:g} minutes hold"


def count_steps(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> int:
    """Return the optimiser steps of the run, from --epochs, --steps or --minutes."""
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
    """Measure the rate on discarded steps and return the steps that fit into the minutes."""
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
    """Measure the seconds of a step on discarded steps; the mean over a run's stages.

    Args:
        config: configuration of the run.
        plan: defines the batches.
        model: the model before the run; not changed.
        how: loss and preparation of a batch.
        warm: warm-up in seconds, at least one step.
        least: minimum number of measured steps of each stage.
        seconds: minimum time of each stage.
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
    """Yield a function (batch, step number) that runs a training step on a copy of the model."""
    # A copy: without a warm-up, even the first step changes the weights.
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
    """Call `act` with 0, 1, 2 and so on, and return the calls per second.

    Args:
        act: function to time.
        least: minimum number of calls, unless they take more than ten times `seconds`.
        seconds: minimum time.
        finish: waits for asynchronous work.
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
    """Lower the batch of a measured step: a CPU would take minutes for a large one.

    The number of parallel micro-batches stays that of the whole batch.

    Args:
        config: configuration of the run.
        device: any device but a CPU measures the whole batch.
        flops: upper bound of the operations of a step, of at least two images; none: a default
            that takes a fraction of a second.
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
