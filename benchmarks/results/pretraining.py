"""The encoders that are compared: by the demo's recipe, and on half of the classes, both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae.config.run import AugmentConfig, FinetuneConfig, MixConfig, ModelConfig, OptimConfig
from mae.data.batching.batch import Batch
from mae.data.sources.fashion_mnist import Split, fashion_mnist
from mae.data.sources.source import ArraySource
from mae.evaluation.features import LabelledImages
from mae.evaluation.few_shot import finetune_in_memory
from mae.jobs.pretrain import pretrain
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.recipes.catalogue import DEMO
from mae.runs.directory import read_record
from mae.train.finetune_batch import soft_target_loss
from mae.train.resolve import resolve
from mae.train.step import Loss, pretraining_loss
from mae.weights.formats.native import save

HALVES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
WHOLE = replace(DEMO, epochs=20, optim=OptimConfig(lr=0.012, warmup_epochs=2))
"""The demo's recipe when docs/results.md was measured."""
HALF_STEPS = 3000  # of 64 images: 192,000, about 13 epochs of the 15,000 images of a half

SUPERVISED = FinetuneConfig(
    num_classes=5,
    batch=DEMO.batch,
    optim=OptimConfig(lr=0.0013, warmup_epochs=40, betas=(0.9, 0.999), decay_tokens=False),
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.5),
    mix=MixConfig(smoothing=0.1),
)
"""The same network, images, batch and flips with labels, a tenth of it warm-up; its rate is the
best on the images held out of those tried (docs/log.md)."""


def pretrain_whole(folder: Path, seed: int) -> Path:
    """Pre-train by the demo's recipe on all built-in images; give the run, made or found."""
    run = folder / f"demo-{seed}"
    if not _finished(run):
        pretrain(replace(WHOLE, seed=seed), data="fashion-mnist", out=run, based_on="demo")
    return run


def pretrain_half(folder: Path, half: int, seed: int) -> Path:
    """Pre-train on the images of five classes, without their labels; give the run."""
    run = folder / f"half-{half}-mae-{seed}"
    if not _finished(run):
        config = replace(WHOLE, steps=HALF_STEPS, seed=seed)
        pretrain(config, data=half_source("train", HALVES[half]), out=run, based_on="demo")
    return run


def supervise_half(folder: Path, half: int, seed: int) -> Path:
    """Train the same network on the labels of the same five classes, for the same arithmetic."""
    weights = folder / f"half-{half}-supervised-{seed}"
    if not (weights / "model.safetensors").exists():
        source = half_source("train", HALVES[half])
        config = resolve(DEMO, source).config
        how = replace(SUPERVISED, steps=supervised_steps(config.model), seed=seed)
        encoder = create(config.model, seed=seed).encoder
        model = finetune_in_memory(encoder, train=LabelledImages.of(source), config=how)
        save(model, weights, class_names=source.class_names)
    return weights


def half_source(split: Split, classes: tuple[int, ...]) -> ArraySource:
    """Give the images of some classes, whose labels count from 0."""
    whole = fashion_mnist(split)
    assert whole.labels is not None
    rows = np.flatnonzero(np.isin(whole.labels, classes))
    names = tuple(whole.class_names[i] for i in classes)
    labels = np.searchsorted(classes, whole.labels[rows])
    return ArraySource(whole.images[rows], labels=labels, class_names=names)


class Arithmetic(NamedTuple):
    """Floating-point operations of a training step of one image, counted by torch."""

    mae: float
    supervised: float


def arithmetic(config: ModelConfig, *, batch: int = 8) -> Arithmetic:
    """Count what a step of either sort costs: forward and backward, products alone."""
    model = create(config, seed=0)
    classifier = Classifier(create(config, seed=0).encoder, num_classes=SUPERVISED.num_classes)
    images = torch.zeros(batch, config.channels, *config.image_size, dtype=torch.uint8)
    noise = torch.rand(batch, config.num_patches, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(batch, dtype=torch.int64)
    seen = Batch(images, noise, labels, labels)
    soft = torch.full((batch, SUPERVISED.num_classes), 1 / SUPERVISED.num_classes)
    told = seen._replace(images=images.float(), targets=soft)
    return Arithmetic(
        _count(model, pretraining_loss, seen) / batch,
        _count(classifier, soft_target_loss, told) / batch,
    )


def supervised_steps(config: ModelConfig) -> int:
    """Give the supervised steps that cost as much as HALF_STEPS of the masked autoencoder."""
    cost = arithmetic(config)
    return round(HALF_STEPS * cost.mae / cost.supervised)


def _count(model: torch.nn.Module, loss: Loss, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()


def _finished(run: Path) -> bool:
    return run.exists() and bool((read_record(run) or {}).get("finished"))
