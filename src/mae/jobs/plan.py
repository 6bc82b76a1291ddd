"""Plan a pre-training run: estimated memory, time and cores on this or another machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import numpy as np

from mae.config.model import require
from mae.config.run import PixelConfig, PretrainConfig
from mae.data.decoding.header import kind_of
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource, Source
from mae.data.types import Log
from mae.errors import ConfigError
from mae.model.costs import count_parameters
from mae.planning.estimate import Estimate
from mae.planning.hardware import machine_of, this_machine, with_ranks
from mae.recipes.pretraining import PRETRAINING
from mae.train.choice import choose_config
from mae.train.measure import with_measured_rate
from mae.train.resolve import resolve, resolve_precision

IMAGENET = 1_281_167


def plan(
    config: PretrainConfig,
    *,
    recipe: str,
    data: Data | None = None,
    gpu: str | None = None,
    ranks: int | None = None,
    images: int | None = None,
    measure: bool = False,
    kept: Collection[str] | None = None,
    log: Log,
) -> Estimate:
    """Estimate the memory, time and cores of a run.

    Args:
        config: the run.
        recipe: its name; a published recipe is planned for ImageNet-1k unless told otherwise.
        data: whatever `open_source` takes; gives number, channels and dtype of the images.
        gpu: card and how many, as in h100x8; none: this machine.
        ranks: number of processes; none: one for each card.
        images: number of images instead of `data`.
        measure: whether to measure the rate of this machine, on steps whose result is discarded.
        kept: see `pretrain`; the recipe folder chooses only with `data`.
        log: prints one line for the user.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    if measure and gpu is not None:
        raise ConfigError("measure: has no effect with --gpu, a machine elsewhere; drop one")
    if measure and ranks not in (None, 1):
        raise ConfigError("measure: takes one process; drop it, or --ranks")
    if config.follow_weights:
        raise ConfigError(f"plan: {recipe} takes its network from weights; use --follow-weights no")
    machine = this_machine(config.device) if gpu is None else machine_of(gpu)
    if ranks is not None:
        machine = with_ranks(machine, ranks)
    precision = resolve_precision(config.precision, has_bf16=machine.has_bf16)
    config = replace(config, precision=precision)
    choose = partial(choose_config, kept=kept, device=machine.device, log=log)
    found = _images(config, recipe, data=data, images=images, choose=choose, log=log)
    config, count, images_from = found
    limits = f"at least {machine.ranks}, the ranks, at most {count}, the images"
    require(machine.ranks <= config.batch <= count, "batch", config.batch, limits)
    if kept is not None and data is None:
        log("folder: as for many images on a GPU; with --data it is chosen by the images")
    counts = count_parameters(config.model)
    estimate = Estimate(config, machine, count, *counts, recipe=recipe, images_from=images_from)
    if not measure:
        return estimate
    model = config.model
    size = (*model.image_size, model.channels)
    noise = np.random.default_rng(config.seed).integers(0, 256, size).astype(model.pixels.dtype)
    source = ArraySource(np.broadcast_to(noise, (config.batch, *size)))
    return with_measured_rate(estimate, source, kind_of(model), log=log)


def _images(
    config: PretrainConfig,
    recipe: str,
    *,
    data: Data | None,
    images: int | None,
    choose: Callable[[PretrainConfig, Source], PretrainConfig],
    log: Log,
) -> tuple[PretrainConfig, int, str]:
    """Resolve the fields that depend on the images; return also their number and its source."""
    if data is not None and images is not None:
        raise ConfigError("data and images: got both, expected one of them; drop one")
    if data is not None:
        source = open_source(data, log=log)
        resolved = resolve(choose(config, source), source)
        for note in resolved.notes:
            log(note)
        return resolved.config, len(source), "counted"
    require(images is None or images >= 1, "images", images, "at least 1")
    if images is None and recipe not in {known.name for known in PRETRAINING}:
        raise ConfigError("plan: expected --data, your images, or --images, their number")
    channels = config.channels or config.model.channels
    if channels != config.model.channels:
        pixels = PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)
        model = replace(config.model, channels=channels, pixels=pixels)
        config = replace(config, model=model)
    if images is None:
        return config, IMAGENET, "ImageNet-1k's (--data or --images for others)"
    return config, images, "as given"
