"""What a run needs settled before its first step."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import torch

from mae.config import FitConfig, PixelConfig, PretrainConfig
from mae.data.batch import BatchPlan, training_batch
from mae.data.decode import PixelKind, measure_pixels, survey
from mae.data.source import ArraySource, Source
from mae.errors import ConfigError
from mae.model.autoencoder import MaskedAutoencoder
from mae.train.optim import adamw
from mae.train.schedule import rate_at
from mae.train.state import TrainState
from mae.train.step import OptimiserStep, pretraining_loss

RATE_STEPS, RATE_SECONDS = 10, 3.0  # the least of both measures the rate for --minutes
WARM_SECONDS = 1.0  # not counted: the first steps allocate, and wait for caches to fill


def resolve(
    config: PretrainConfig, source: Source, *, say: Callable[[str], None]
) -> tuple[PretrainConfig, PixelKind]:
    """Settle what follows from the pictures: channels, type, scaling, and a batch that fits."""
    kind = survey(source)
    if config.channels is not None and config.channels != kind.channels:
        # Grey pictures can be asked for as colour, and the other way round; other counts cannot.
        if {config.channels, kind.channels} != {1, 3}:
            raise ConfigError(
                f"channels: asked for {config.channels}, but the pictures have {kind.channels}; "
                "drop --channels, or choose other pictures"
            )
        kind = kind._replace(channels=config.channels)
    if kind.channels == 3 and not config.measure_pixels:
        pixels = PixelConfig(dtype=kind.dtype)
    else:
        mean, std = measure_pixels(source, kind=kind)
        pixels = PixelConfig(dtype=kind.dtype, mean=mean, std=std)
    model = dataclasses.replace(config.model, channels=kind.channels, pixels=pixels)
    batch = config.batch
    if len(source) < batch:
        batch = len(source)
        say(f"batch: lowered from {config.batch} to {batch}, the pictures there are")
    return dataclasses.replace(config, model=model, batch=batch), kind


def batch_plan(config: PretrainConfig, source: Source, kind: PixelKind) -> BatchPlan:
    """Give what the training batches of a run are a function of."""
    return BatchPlan(
        source=source,
        kind=kind,
        size=config.model.image_size,
        num_patches=config.model.num_patches,
        augment=config.augment,
        batch=config.batch,
        seed=config.seed,
    )


def new_state(model: MaskedAutoencoder, config: PretrainConfig) -> TrainState:
    """Make a state at step 0 on the device that the configuration asks for."""
    model = model.to(choose_device(config.device)).train()
    return TrainState(model=model, optimizer=adamw(model, config.optim))


def device_of(state: TrainState) -> torch.device:
    """Give the device a state lives on."""
    return next(state.model.parameters()).device


def choose_device(name: str) -> torch.device:
    """Turn "auto" into the best device there is.

    Raises:
        ConfigError: for a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: {name!r} cannot be used here ({reason}); use auto, cpu, cuda or mps"
        ) from error
    return device


def choose_workers(config: FitConfig, source: Source, device: torch.device) -> int:
    """Choose how many processes read: none where the pictures are in memory or a CPU trains."""
    if config.workers is not None:
        return config.workers
    if isinstance(source, ArraySource) or device.type == "cpu":
        return 0
    return min(16, os.cpu_count() or 1)


def count_steps(config: PretrainConfig, plan: BatchPlan, model: MaskedAutoencoder) -> int:
    """Give the optimiser steps of the run, which --epochs, --steps or --minutes ask for."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return measured_steps(config, plan, minutes=config.minutes, model=model)
    return max(1, round(config.epochs * plan.batches_per_epoch))


def measured_steps(
    config: PretrainConfig, plan: BatchPlan, *, minutes: float, model: MaskedAutoencoder
) -> int:
    """Measure the rate on throw-away steps and give the steps that fit into the minutes."""
    state = new_state(model, config)
    step = OptimiserStep(loss=pretraining_loss, config=config, device=device_of(state))
    rate = rate_at(0, num_steps=100, config=config, batch=config.batch)
    with step.side_by_side():
        warm = time.perf_counter()
        while time.perf_counter() - warm < WARM_SECONDS:
            step(state, training_batch(plan, 0), lr=rate)
        began, done = time.perf_counter(), 0
        while done < RATE_STEPS or time.perf_counter() - began < RATE_SECONDS:
            step(state, training_batch(plan, done), lr=rate)
            done += 1
            if time.perf_counter() - began > 10 * RATE_SECONDS:
                break
    return max(1, int(minutes * 60 * done / (time.perf_counter() - began)))
