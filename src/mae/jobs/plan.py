"""Plan a run: estimated memory, time and cores on this or another machine.

Of detection, whose heads are torchvision's, only what can be counted: state and encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from mae.config.detect import DetectConfig
from mae.config.model import require
from mae.config.run import PixelConfig, PretrainConfig
from mae.config.sizes import size_name
from mae.data.decoding.header import kind_of
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource, Source
from mae.data.types import Log
from mae.errors import ConfigError
from mae.model.costs import FLOAT32, bias_bytes
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.encoder import Encoder
from mae.planning.estimate import GIVEN, TESTED, UNKNOWN, Estimate, GiB
from mae.planning.exchange import why_not_sharded
from mae.planning.hardware import machine_of, this_machine, with_ranks
from mae.recipes.pretraining import PRETRAINING
from mae.report.tables import Report
from mae.train.choice import choose_config
from mae.train.measure import with_measured_rate
from mae.train.resolve import resolve, resolve_precision
from mae.transfer.detector import Detector

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
    if config.strategy == "fsdp" and machine.ranks > 1 and (reason := why_not_sharded(config)):
        raise ConfigError(reason)
    choose = partial(choose_config, kept=kept, device=machine.device, log=log)
    found = _images(config, recipe, data=data, images=images, choose=choose, log=log)
    config, count, images_from = found
    limits = f"at least {machine.ranks}, the ranks, at most {count}, the images"
    require(machine.ranks <= config.batch <= count, "batch", config.batch, limits)
    if kept is not None and data is None:
        log("folder: as for many images on a GPU; with --data it is chosen by the images")
    estimate = Estimate.of_run(config, machine, count, recipe=recipe, images_from=images_from)
    if not measure:
        return estimate
    model = config.model
    size = (*model.image_size, model.channels)
    noise = np.random.default_rng(config.seed).integers(0, 256, size).astype(model.pixels.dtype)
    source = ArraySource(np.broadcast_to(noise, (config.batch, *size)))
    return with_measured_rate(estimate, source, kind_of(model), log=log)


def plan_detection(config: DetectConfig, *, recipe: str) -> Report:
    """Count the memory of a run of detection, but for its pyramid and heads.

    Args:
        config: the run.
        recipe: its name.

    Raises:
        ConfigError: for a network of weights, or without torchvision.
    """
    if config.follow_weights:
        raise ConfigError(f"plan: {recipe} takes its network from weights; use --follow-weights no")
    model, dense = config.model, config.dense
    with torch.device("meta"):
        backbone = PyramidBackbone(Encoder(model), dense, channels=config.pyramid_channels)
        detector = Detector(backbone, num_classes=config.num_classes, masks=config.masks is True)
    count = sum(parameter.numel() for parameter in detector.parameters())
    machine = machine_of("h100")  # of any, for float32
    float32 = replace(config, precision="float32")
    estimate = Estimate(float32, machine, config.batch, count, 0, recipe=recipe)
    biases = bias_bytes(model, dense, value=FLOAT32)
    (h, w), kept, bias = model.grid, estimate.activations.kept, max(biases)
    name = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
    encoder = f"{kept / GiB:.3g} GiB of the encoder kept for the backward pass, in float32"
    attention = (
        f"{bias / GiB:.3g} GiB of it in each of {biases.count(bias)} blocks that attend to the "
        f"whole image: {model.num_heads} heads, {h * w:,} x {h * w:,} patches"
    )
    state = f"{estimate.state_bytes / GiB:.3g} GiB: {count:,} parameters, gradients, two moments"
    values = {
        "recipe": recipe,
        "parameters": count,
        "state_bytes": estimate.state_bytes,
        "kept_bytes_per_image": kept,
        "bias_bytes_per_image_and_block": bias,
    }
    rows = [
        ("recipe", f"{recipe}: {name} at {' x '.join(map(str, model.image_size))}", GIVEN),
        ("state", state, TESTED),
        ("an image", encoder, TESTED),
        *([("attention", attention, TESTED)] if bias else []),
        ("not counted", "pyramid, proposals and heads; time", UNKNOWN),
    ]
    return Report(values, rows)


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
