"""Settle a run before its first step: network, pixels, batch, precision, state, workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal

import numpy as np
import torch
from torch import nn

from mae.config.detect import DetectConfig
from mae.config.kinds import AnyRunConfig, ConfigT
from mae.config.model import refuse_without_effect
from mae.config.run import (
    FinetuneConfig,
    FitConfig,
    PixelConfig,
    PretrainConfig,
    TransferConfig,
    resolve_crop_pct,
)
from mae.config.segment import SegmentConfig
from mae.data.augment.randaugment import RandAugment, check_randaugment
from mae.data.batching.batch import BatchPlan
from mae.data.decoding.decode import PagesKind, PixelKind
from mae.data.decoding.header import asked_channels, kind_of
from mae.data.detection.source import BoxSource
from mae.data.sampling.draws import Stream
from mae.data.sampling.order import shuffled
from mae.data.segmentation.source import MaskSource
from mae.data.sources.source import ArraySource, Source
from mae.data.survey import measure_pixels, survey
from mae.data.types import Integers
from mae.errors import ConfigError, DataError
from mae.model.classifier import Classifier
from mae.model.dense.segmenter import Segmenter
from mae.model.processor import emulates_bf16
from mae.model.transformer import Block, Blocks
from mae.parallel.processes import SINGLE_PROCESS, Communicator, ProcessInfo
from mae.planning.hardware import choose_device, has_bf16
from mae.runs.state import TrainState
from mae.train import detect_batch, segment_batch
from mae.train.optim.parameter_groups import choose_trained, create_optimizer
from mae.train.strategy import claim_device, with_strategy
from mae.transfer.detector import Detector
from mae.weights.given import Given
from mae.weights.start_detector import dense_from_weights
from mae.weights.start_from import config_from_weights

Precision = Literal["auto", "float32", "bf16", "fp16"]

_KEPT_ON_RESUME = ("log_every_steps", "keep", "keep_checkpoints")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedRun(Generic[ConfigT]):
    """A run whose settings no longer depend on images, weights or machine."""

    config: ConfigT
    """Complete, network included, so that run.json alone repeats the run."""
    kind: PixelKind
    """Type and channels that images are decoded to."""
    source: Source
    notes: tuple[str, ...]
    """Messages for the user."""


def resolve(
    config: ConfigT,
    source: Source,
    *,
    weights: str | Path | None = None,
    begun: Mapping[str, Any] | None = None,
    given: Given | None = None,
) -> ResolvedRun[ConfigT]:
    """Settle all settings that depend on weights, images, machine and an earlier start.

    Args:
        config: a recipe, with its changes.
        source: the training images.
        weights: initial weights, if any.
        begun: run.json of the run to resume. Its precision, and its log and checkpoint intervals
            where the config has the defaults, are kept: the defaults of older versions differ.
        given: settings that the weights do not say.

    Raises:
        MaeError: for images or weights that cannot be read or do not fit each other or the config.
    """
    notes: list[str] = []
    stored = {} if begun is None else begun["config"]
    if isinstance(config, PretrainConfig) and begun is not None and "held_out" not in stored:
        config = dataclasses.replace(config, held_out=0.0)  # older versions trained on all
    network = _transfer_network if isinstance(config, TransferConfig) else _pretraining_network
    fields, kind = network(config, source, weights, given or {}, log=notes.append)
    fields["model"] = resolve_crop_pct(fields["model"], config.augment)
    fields |= {"follow_weights": False, "resize": None}
    if (count := config.trained_images(len(source))) < config.batch:
        views = config.views_per_decode if isinstance(config, PretrainConfig) else 1
        batch = fields["batch"] = count // views * views
        notes.append(f"batch: lowered from {config.batch} to {batch}; there are {count} images")
    if held := len(source) - count:
        notes.append(
            f"held out: {held} of {len(source):,} images, for the health check "
            "(--held-out 0 trains on all)"
        )
    if config.precision == "auto":
        bf16 = has_bf16(choose_device(config.device))
        fields["precision"] = resolve_precision("auto", has_bf16=bf16, begun=begun)
    defaults = FitConfig()
    for name in _KEPT_ON_RESUME:
        if name in stored and getattr(config, name) == getattr(defaults, name):
            fields[name] = stored[name]
    config = dataclasses.replace(config, **fields)
    # A run that is resumed keeps its precision.
    if config.half == "bf16" and begun is None and emulates_bf16():
        if choose_device(config.device).type == "cpu":
            notes.append(
                "precision: this processor emulates bf16, slower than float32; "
                "use --precision float32"
            )
    return ResolvedRun(config=config, kind=kind, source=source, notes=tuple(notes))


def resolve_on_main(
    ranks: Communicator, config: ConfigT, source: Source, **how: Any
) -> ResolvedRun[ConfigT]:
    """`resolve` on rank 0, with its result for every rank.

    Args:
        ranks: the processes of the job.
        config: see `resolve`.
        source: the training images, opened by each rank.
        how: other arguments of `resolve`.

    Raises:
        MaeError: as `resolve`; for fewer images in a batch, or fewer GPUs, than ranks.
    """
    claim_device(config, ranks.process)

    def settle() -> tuple[ConfigT, PixelKind, tuple[str, ...]]:
        found = resolve(config, source, **how)
        _require_share_each(found.config, ranks.process.world_size)
        return found.config, found.kind, found.notes

    settled, kind, notes = ranks.on_main(settle)
    more = list(notes)
    choose = partial(with_strategy, settled, ranks.process, log=more.append)
    whole = ranks.on_main(choose)
    return ResolvedRun(config=whole, kind=kind, source=source, notes=tuple(more))


def _require_share_each(config: FitConfig, world_size: int) -> None:
    """Require an image of each batch, or a pair that Mixup mixes, for each rank."""
    images, what = config.batch, "images"
    if isinstance(config, PretrainConfig) and config.views_per_decode > 1:
        images, what = (
            images // config.views_per_decode,
            f"images of {config.views_per_decode} views",
        )
    if _mixes(config):
        images, what = (images + 1) // 2, "pairs of mixed images"
    if images < world_size:
        raise ConfigError(
            f"ranks: got {world_size}, the batch has {images} {what}; start at most {images} "
            "ranks, or raise --batch"
        )


def _mixes(config: FitConfig) -> bool:
    return isinstance(config, FinetuneConfig) and bool(config.mix.mixup or config.mix.cutmix)


def _pretraining_network(
    config: PretrainConfig,
    source: Source,
    weights: str | Path | None,
    given: Given,
    *,
    log: Callable[[str], None],
) -> tuple[dict[str, Any], PixelKind]:
    """Return model and objective for the images, with the scaling of weights for such images."""
    model, objective, known = config.model, config.objective, None
    if weights is not None and config.follow_weights:
        model, objective, notes = config_from_weights(config, weights, **given)
        known = model.pixels
        for note in notes:
            log(note)
    kind = survey(source, channels=config.channels, max_bad=config.max_bad, log=log)
    if config.channels is not None and config.channels != kind.channels:
        # Grey images can be read as colour and colour as grey; other counts cannot be converted.
        if {config.channels, kind.channels} != {1, 3}:
            raise ConfigError(
                f"channels: asked for {config.channels}, but the images have {kind.channels}; "
                "drop --channels, or choose other images"
            )
        kind = kind._replace(channels=config.channels)
    fits = known is not None and PixelKind(known.dtype, len(known.mean)) == kind
    if known is None or not fits or config.measure_pixels:
        known = pixels_of(source, kind, measured=config.measure_pixels)
    pixels = dataclasses.replace(known, tiff_pages=isinstance(kind, PagesKind))
    if config.views_per_decode > 1 and isinstance(source, ArraySource):
        log("views_per_decode: images in memory are not decoded; it only changes their order")
    model = dataclasses.replace(model, channels=kind.channels, pixels=pixels)
    return {"model": model, "objective": objective}, kind


def _transfer_network(
    config: FinetuneConfig | SegmentConfig | DetectConfig,
    source: Source,
    weights: str | Path | None,
    given: Given,
    *,
    log: Callable[[str], None],
) -> tuple[dict[str, Any], PixelKind]:
    """Return the model of the weights, or a new one, which must take the images."""
    found = survey(source, max_bad=config.max_bad, log=log)
    classes = len(_classes(source))
    if weights is not None:
        # The notes on assumptions are printed when the weights are loaded.
        model = config_from_weights(config, weights, num_classes=classes, **given).model
    else:
        refuse_without_effect("a new network", "--weights", **given)
        if config.follow_weights:
            classify = isinstance(config, FinetuneConfig)
            recipes = "the recipes paper-scratch-vit-b, -l and -h, or " if classify else ""
            raise ConfigError(
                "weights: expected --weights, a folder, file or run; a new network takes "
                f"{recipes}--follow-weights no with --model vit-s/16 or another"
            )
        pixels = pixels_of(source, found)
        model = dataclasses.replace(config.model, channels=found.channels, pixels=pixels)
    kind = kind_of(model)
    if found.channels != model.channels and (pages := asked_channels(kind)) is not None:
        found = survey(source, channels=pages, max_bad=config.max_bad, log=log)
    # Grey and RGB images can be converted to each other; other channel counts cannot.
    if found.channels != model.channels and {found.channels, model.channels} != {1, 3}:
        raise DataError(
            f"data: the images have {found.channels} channels, the weights take "
            f"{model.channels}; give images or weights of the other"
        )
    if found.dtype == "float32" != kind.dtype:
        raise DataError(
            f"data: the images are floating-point, the weights take {kind.dtype}; convert them"
        )
    if isinstance(config, FinetuneConfig) and config.rand_augment is not None:
        check_randaugment(RandAugment(config.rand_augment, model.pixels.mean), kind)
    fields = {"model": model, "num_classes": classes}
    if isinstance(config, DetectConfig):
        assert isinstance(source, BoxSource)
        if weights is not None:
            fields["dense"] = dense_from_weights(config, weights, **given)
        fields["masks"] = source.has_masks if config.masks is None else config.masks
        if config.masks and not source.has_masks:
            raise DataError("data: not every object has a mask; use --masks no, or add the masks")
    return fields, kind


def _classes(source: Source) -> tuple[str, ...]:
    """Return the names of the classes of images, pixels or boxes."""
    if isinstance(source, MaskSource):
        return source.mask_classes
    return source.box_classes if isinstance(source, BoxSource) else source.class_names


def resolve_precision(
    precision: Precision, *, has_bf16: bool, begun: Mapping[str, Any] | None = None
) -> Precision:
    """Resolve a precision of "auto" to that of the run to resume, else to bf16 or float32.

    It never selects fp16, which has a short range and needs loss scaling.

    Args:
        precision: any other one is kept.
        has_bf16: whether the device has bf16 of its own (`hardware.has_bf16`).
        begun: run.json of the run to resume.
    """
    if precision != "auto":
        return precision
    best: Precision = "bf16" if has_bf16 else "float32"
    return best if begun is None else begun["config"].get("precision", best)


def pixels_of(source: Source, kind: PixelKind, *, measured: bool = False) -> PixelConfig:
    """Return the pixel scaling: ImageNet's for colour, else or with `measured` as measured."""
    if kind.channels == 3 and not measured:
        return PixelConfig(dtype=kind.dtype)
    mean, std = measure_pixels(source, kind=kind)
    return PixelConfig(dtype=kind.dtype, mean=mean, std=std)


def batch_plan(
    config: AnyRunConfig,
    source: Source,
    kind: PixelKind,
    process: ProcessInfo = SINGLE_PROCESS.process,
) -> BatchPlan:
    """Return the plan that defines the training batches of a run, and a rank's share of each."""
    plan = partial(
        BatchPlan,
        source=source,
        kind=kind,
        size=config.model.image_size,
        augment=config.augment,
        batch=config.batch,
        seed=config.seed,
        share=(process.rank, process.world_size),
        mirrored=_mixes(config),
    )
    if isinstance(config, PretrainConfig):
        held = held_out_ids(config, len(source))
        return plan(
            held_out=tuple(held.tolist()),
            grid=config.model.grid,
            objective=config.objective,
            views_per_decode=config.views_per_decode,
        )
    if isinstance(config, SegmentConfig):
        rule, draws = segment_batch.crop_rule(config), segment_batch.num_draws(config)
        return plan(annotated=rule, num_drops=draws)
    if isinstance(config, DetectConfig):
        jitter = detect_batch.jitter_rule(config)
        return plan(annotated=jitter, num_drops=detect_batch.num_draws(config))
    text, mean = config.rand_augment, config.model.pixels.mean
    return plan(
        num_drops=2 * config.model.depth if config.drop_path else 0,
        randaugment=None if text is None else RandAugment(text, mean),
    )


def health_order(config: PretrainConfig, places: Integers, *, count: int) -> Integers:
    """Map places in a random order of `count` images, whose first are held out, to their ids."""
    return shuffled(places, n=count, seed=config.seed, epoch=0, stream=Stream.HEALTH)


def held_out_ids(config: PretrainConfig, count: int) -> Integers:
    """Choose the images of `count` that no batch of a run shows; ids, ascending."""
    held = count - config.trained_images(count)
    return np.sort(health_order(config, np.arange(held), count=count))


def new_state(
    model: nn.Module,
    config: FitConfig,
    ranks: Communicator = SINGLE_PROCESS,
) -> TrainState:
    """Create the training state at step 0 on the configured device.

    With strategy "fsdp", all ranks do so together, and each keeps its part of the model.
    """
    device, skeleton = choose_device(config.device), None
    for part in model.train().modules():
        if isinstance(part, Blocks):
            part.checkpoint_every = config.checkpoint_every
    scaler = torch.amp.GradScaler(device.type) if config.half == "fp16" else None
    layers: dict[str, Any] = {}
    if isinstance(config, TransferConfig):
        assert isinstance(model, Classifier | Segmenter | Detector)
        choose_trained(model, config.train_blocks)
        layers = {"layer_decay": config.layer_decay, "depth": config.model.depth}
    if config.strategy == "fsdp" and ranks.process.world_size > 1:
        from mae.parallel.fsdp import shard

        blocks = [part for part in model.modules() if isinstance(part, Block)]
        with ranks.failures_of_others():
            skeleton = shard(model, blocks, device=device, bf16=config.half == "bf16")
    else:
        model.to(device)
    optimizer = create_optimizer(model, config.optim, **layers)
    return TrainState(model, optimizer, scaler=scaler, skeleton=skeleton)


def device_of(state: TrainState) -> torch.device:
    """Return the device of a training state."""
    return next(state.model.parameters()).device
