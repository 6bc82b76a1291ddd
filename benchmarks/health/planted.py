"""Twelve planted failures of pre-training and twelve sound runs.

This list was written before any threshold of `mae.evaluation.findings` was set. Thresholds are
chosen on the runs with odd numbers; the runs with even numbers are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.health.images import built_in, first, of_folder, shapes, textures
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.data.batching.batch import BatchPlan
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create

STEPS = 1000
BATCH = 32
ADAMW = OptimConfig(lr=0.016, warmup_epochs=1)  # 2e-3 at batch 32
MUON = OptimConfig(name="muon", lr=0.032, warmup_epochs=1)  # 4e-3 at batch 32

Images = Callable[[Path], NDArray[np.generic]]
"""Makes the images of a run; the argument is the folder that the user gave."""


def network(size: int | tuple[int, int], **fields: Any) -> ModelConfig:
    """Describe a very small network for images of a size."""
    given = {"patch_size": 4, "width": 48, "depth": 2, "num_heads": 3, "decoder_width": 32,
             "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip
    size = (size, size) if isinstance(size, int) else size
    return ModelConfig(image_size=size, **(given | fields))


SOUND = PretrainConfig(
    model=network(32),
    steps=STEPS,
    epochs=10,  # a tenth of the steps is warm-up
    batch=BATCH,
    optim=ADAMW,
    augment=AugmentConfig(crop_scale=(0.5, 1.0)),
    held_out=0.05,
    device="cpu",
    threads=1,
    precision="float32",
    log_every_steps=10,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of the benchmark."""

    name: str
    images: Images
    config: PretrainConfig = SOUND
    plant: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    """Entered around the run; plants what a configuration cannot."""


def _changed_model(change: Callable[[MaskedAutoencoder], object]) -> AbstractContextManager[object]:
    """Let `change` alter the new model of a run."""

    def altered(*values: Any, **fields: Any) -> MaskedAutoencoder:
        model = create(*values, **fields)
        change(model)
        return model

    return patch("mae.jobs.pretrain.create", altered)


def _wrong_std() -> AbstractContextManager[object]:
    def scaled(config: ModelConfig, **fields: Any) -> MaskedAutoencoder:
        std = tuple(100 * value for value in config.pixels.std)
        return create(replace(config, pixels=replace(config.pixels, std=std)), **fields)

    return patch("mae.jobs.pretrain.create", scaled)


def _frozen_decoder() -> AbstractContextManager[object]:
    return _changed_model(lambda model: model.decoder.requires_grad_(requires_grad=False))


def _zeroed_in_mid_run() -> AbstractContextManager[object]:
    """Set every weight to 0 before the forward pass of the step in the middle."""

    def change(model: MaskedAutoencoder) -> None:
        passes = 0

        def zero(module: torch.nn.Module, inputs: object) -> None:
            nonlocal passes
            passes += module.training
            if passes == STEPS // 2 and module.training:
                with torch.no_grad():
                    for weight in module.parameters():
                        weight.zero_()

        model.register_forward_pre_hook(zero)

    return _changed_model(change)


@contextmanager
def _same_batch() -> Iterator[None]:
    real = BatchPlan.batch_ids
    with patch.object(BatchPlan, "batch_ids", lambda plan, step: real(plan, 0)):
        yield


def _noise(_: Path) -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)


def _mask(ratio: float, **fields: Any) -> ObjectiveConfig:
    return ObjectiveConfig(mask_ratio=ratio, **fields)


def _optim(**fields: Any) -> OptimConfig:
    return replace(ADAMW, **fields)


SMALL = replace(SOUND, model=network(28))
PLAIN = ObjectiveConfig(normalize_target=False)

PLANTED = (
    Case(
        name="learning rate 100 times too high",
        images=lambda _: built_in(3000).images,
        config=replace(SMALL, optim=_optim(lr=100 * ADAMW.lr)),
    ),
    Case(
        name="all images black",
        images=lambda _: np.zeros((2000, 32, 32, 3), np.uint8),
    ),
    Case(
        name="95 % duplicates",
        images=lambda _: np.tile(shapes(75).images, (20, 1, 1, 1)),
    ),
    Case(
        name="std of the normalisation 100 times too large",
        images=lambda _: shapes(3000).images,
        plant=_wrong_std,
    ),
    Case(
        name="mask ratio 0.98",
        images=lambda _: shapes(3000).images,
        config=replace(SOUND, objective=_mask(0.98)),  # 1 of 64 patches is visible
    ),
    Case(
        name="decoder frozen at random",
        images=lambda _: textures(3000).images,
        plant=_frozen_decoder,
    ),
    Case(
        name="weights zeroed in mid-run",
        images=lambda _: shapes(3000).images,
        plant=_zeroed_in_mid_run,
    ),
    Case(
        name="the same batch at every step",
        images=lambda _: built_in(3000).images,
        config=SMALL,
        plant=_same_batch,
    ),
    Case(
        name="learning rate 1,000 times too low",
        images=lambda folder: of_folder(folder).images,
        config=replace(SOUND, optim=_optim(lr=ADAMW.lr / 1000)),
    ),
    Case(name="white noise for images", images=_noise),
    Case(
        name="110 images, 300 times each",
        images=lambda _: shapes(110).images,
        config=replace(SOUND, optim=MUON, augment=AugmentConfig(crop_scale=(1, 1), flip=0)),
    ),
    Case(
        name="weight decay 10,000 times too high",
        images=lambda folder: of_folder(folder).images,
        config=replace(SOUND, optim=_optim(weight_decay=500.0)),
    ),
)

HEALTHY = (
    Case(name="built-in, AdamW", images=lambda _: built_in(3000).images, config=SMALL),
    Case(
        name="built-in, Muon, width 64, 3 blocks",
        images=lambda _: built_in(5000).images,
        config=replace(SOUND, model=network(28, width=64, depth=3, num_heads=4), optim=MUON),
    ),
    Case(name="shapes, AdamW", images=lambda _: shapes(3000).images),
    Case(
        name="shapes, Muon, mask 0.6",
        images=lambda _: shapes(2000).images,
        config=replace(SOUND, optim=MUON, objective=_mask(0.6)),
    ),
    Case(name="textures, AdamW", images=lambda _: textures(3000).images),
    Case(
        name="textures, Muon, grid masks",
        images=lambda _: textures(2000).images,
        config=replace(SOUND, optim=MUON, objective=_mask(0.75, mask_kind="grid")),
    ),
    Case(name="folder, AdamW", images=lambda folder: of_folder(folder).images),
    Case(
        name="folder, Muon, 1,000 images, strong crops",
        images=lambda folder: first(of_folder(folder), 1000),
        config=replace(SOUND, optim=MUON, augment=AugmentConfig(crop_scale=(0.2, 1.0))),
    ),
    Case(
        name="built-in, plain pixels, mask 0.5, whole images",
        images=lambda _: built_in(3000).images,
        config=replace(
            SMALL,
            objective=_mask(0.5, normalize_target=False),
            augment=AugmentConfig(crop_scale=(1, 1)),
        ),
    ),
    Case(
        name="shapes, block masks, half the rate",
        images=lambda _: shapes(3000).images,
        config=replace(
            SOUND,
            objective=_mask(0.6, mask_kind="block", mask_block=2),
            optim=_optim(lr=ADAMW.lr / 2),
        ),
    ),
    Case(
        name="folder, plain pixels, patch 8",
        images=lambda folder: of_folder(folder).images,
        config=replace(SOUND, model=network(32, patch_size=8), objective=PLAIN),
    ),
    Case(
        name="textures of 24 x 40, Muon, batch 64",
        images=lambda _: textures(3000, size=(24, 40)).images,
        config=replace(SOUND, model=network((24, 40)), batch=64, steps=500, optim=MUON),
    ),
)
