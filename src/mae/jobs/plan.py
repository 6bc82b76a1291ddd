"""Plan a pre-training run: estimated memory, time and cores on this or another machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from mae.config.run import PixelConfig, PretrainConfig
from mae.data.decoding.header import kind_of
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError
from mae.model.costs import FLOAT32, HALF, count_parameters
from mae.model.create import create
from mae.planning.estimate import ESTIMATE, MEASURED, Plan
from mae.planning.hardware import machine_of, this_machine
from mae.recipes.pretraining import PRETRAINING
from mae.train.measure import few_pictures, measured_steps
from mae.train.outlook import BYTES_PER_PARAMETER
from mae.train.resolve import batch_plan, resolve, settle_precision

IMAGENET = 1_281_167
SHARE_OF_PEAK = 0.5
"""Fraction of a GPU's peak that optimised training steps reach."""


def plan(
    config: PretrainConfig,
    *,
    recipe: str,
    data: Data | None = None,
    gpu: str | None = None,
    images: int | None = None,
    measure: bool = False,
    say: Callable[[str], None],
) -> Plan:
    """Estimate the memory, time and cores of a run.

    Args:
        config: the run.
        recipe: its name; a published recipe is planned for ImageNet-1k unless told otherwise.
        data: whatever `open_source` takes; gives number, channels and dtype of the images.
        gpu: card and how many, as in h100x8; none: this machine.
        images: number of images instead of `data`.
        measure: whether to measure the rate of this machine, on steps whose result is discarded.
        say: takes one line for the user.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    if measure and gpu is not None:
        raise ConfigError("measure: has no effect with --gpu, a machine elsewhere; drop one")
    if config.follow_weights:
        raise ConfigError(
            f"plan: the network of {recipe} comes from weights; plan --follow-weights no with its "
            "model fields, or another recipe"
        )
    machine = this_machine(config.device) if gpu is None else machine_of(gpu)
    config = settle_precision(config, has_bf16=machine.has_bf16)
    settled, count, images_from = _pictures(config, recipe, data=data, images=images, say=say)
    if settled.batch > count or settled.batch < machine.ranks:
        raise ConfigError(
            f"batch: got {settled.batch}, expected from {machine.ranks}, the ranks, to {count}, "
            "the pictures; change --batch"
        )
    trained, state = state_bytes(settled)
    planned = Plan(
        recipe=recipe,
        config=settled,
        machine=machine,
        images=count,
        images_from=images_from,
        parameters=trained,
        state_bytes=state,
        rate=math.nan,
        rate_basis=ESTIMATE,
        rate_note="add --measure for this machine, or --gpu h100 for another",
    )
    if measure and planned.largest:
        rate, pictures = measured_rate(planned, say=say)
        note = f"on this machine's {machine.device}, steps of {pictures}"
        return planned._replace(rate=rate, rate_basis=MEASURED, rate_note=note)
    peak = machine.peak_flops(settled.precision)
    if math.isnan(peak):
        return planned
    rate = machine.ranks * SHARE_OF_PEAK * peak / planned.step_flops
    note = f"{SHARE_OF_PEAK:.0%} of the peak in {settled.precision}"
    if machine.ranks > 1:
        note += ", exchange of gradients not counted"
    return planned._replace(rate=rate, rate_note=note)


def state_bytes(config: PretrainConfig) -> tuple[int, int]:
    """Count the trained parameters, and the memory of the network and its optimiser in bytes."""
    trained, frozen = count_parameters(config.model)
    # Autocast keeps a copy of each weight until the backward pass is done.
    copies = 0 if config.half is None else HALF
    return trained, (BYTES_PER_PARAMETER + copies) * trained + FLOAT32 * frozen


def _pictures(
    config: PretrainConfig,
    recipe: str,
    *,
    data: Data | None,
    images: int | None,
    say: Callable[[str], None],
) -> tuple[PretrainConfig, int, str]:
    """Settle the fields that depend on the images; return also their number and its source."""
    if data is not None and images is not None:
        raise ConfigError("data and images: got both, expected one of them; drop one")
    if data is not None:
        source = open_source(data, log=say)
        return resolve(config, source, say=say)[0], len(source), "counted"
    if images is not None and images < 1:
        raise ConfigError(f"images: expected at least 1, got {images}")
    if images is None and recipe not in {known.name for known in PRETRAINING}:
        raise ConfigError("plan: expected --data, your pictures, or --images, their number")
    if config.channels is not None and config.channels != config.model.channels:
        halves = (0.5,) * config.channels
        fields = {"channels": config.channels, "pixels": PixelConfig(mean=halves, std=halves)}
        model = dataclasses.replace(config.model, **fields)  # type: ignore[arg-type]
        config = dataclasses.replace(config, model=model)
    if images is None:
        return config, IMAGENET, "ImageNet-1k's (--data or --images for others)"
    return config, images, "as given"


def measured_rate(planned: Plan, *, say: Callable[[str], None]) -> tuple[float, int]:
    """Measure this machine's images per second on noise, with the method of pre-training.

    Returns:
        The rate in images per second, and the images per measured step (fewer on a CPU).
    """
    given = {"batch": planned.share, "micro_batch": planned.micro_batch, "views_per_decode": 1}
    whole = dataclasses.replace(planned.config, **given)  # type: ignore[arg-type]
    few = few_pictures(whole, torch.device(planned.machine.device))
    model, pictures = few.model, few.batch
    draw = np.random.default_rng(few.seed)
    shape = (pictures, *model.image_size, model.channels)
    noise = draw.integers(0, 256, shape).astype(model.pixels.dtype)
    say(f"measuring the rate of {model.image_size}, {pictures} pictures a step")
    source, fresh = ArraySource(noise), create(model, objective=few.objective, seed=few.seed)
    made = batch_plan(few, source, kind_of(model))
    steps = measured_steps(few, made, minutes=60, model=fresh)
    return steps * pictures / 3600, pictures
