"""Resolve a run's configuration before its first step: pixels, precision, workers, steps."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mae.config.run import FinetuneConfig, FitConfig, PixelConfig, PretrainConfig, settle_crop_pct
from mae.data.augment.randaugment import RandAugment
from mae.data.batching.batch import BatchPlan
from mae.data.batching.loader import MADE_AHEAD
from mae.data.batching.readers import why_no_readers
from mae.data.decoding.decode import PagesKind, PixelKind
from mae.data.sources.source import ArraySource, Source
from mae.data.survey import measure_pixels, survey
from mae.errors import ConfigError
from mae.model.classifier import Classifier
from mae.model.transformer import Blocks
from mae.planning.hardware import choose_device, cores
from mae.runs.state import TrainState
from mae.train.optim.parameter_groups import choose_trained, create_optimizer

ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig)


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
    kind = survey(source, channels=config.channels, max_bad=config.max_bad, log=say)
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
        augment=config.augment,
        batch=config.batch,
        seed=config.seed,
    )
    if isinstance(config, PretrainConfig):
        return dataclasses.replace(
            plan,
            grid=config.model.grid,
            objective=config.objective,
            views_per_decode=config.views_per_decode,
        )
    text, mean = config.rand_augment, config.model.pixels.mean
    return dataclasses.replace(
        plan,
        num_drops=2 * config.model.depth if config.drop_path else 0,
        randaugment=None if text is None else RandAugment(text, mean),
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
        return TrainState(model, create_optimizer(model, config.optim), scaler=scaler)
    assert isinstance(model, Classifier)
    choose_trained(model, config.train_blocks)
    layers = {"layer_decay": config.layer_decay, "depth": config.model.depth}
    return TrainState(model, create_optimizer(model, config.optim, **layers), scaler=scaler)  # type: ignore[arg-type]


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
