"""The recipe `finetune-folder`: batch and rate of fine-tuning chosen by the number of images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mae.config.run import AugmentConfig, FinetuneConfig, MixConfig, OptimConfig
from mae.config.sizes import SIZES
from mae.recipes.folder import with_fields

NAME = "finetune-folder"
MICRO_BATCH = 64

# The published fine-tuning of ViT-B, adapted to few images: a smaller batch gives more steps.
FINETUNE_FOLDER = FinetuneConfig(
    follow_weights=True,
    epochs=50,
    batch=128,
    micro_batch=MICRO_BATCH,
    optim=OptimConfig(
        lr=1e-3, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999), decay_tokens=False
    ),
    layer_decay=0.75,
    drop_path=0.1,
    augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=0.5),
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
)
"""For many images, and for some of the blocks (`train_blocks`)."""

CHOSEN = ("batch", "micro_batch", "optim.lr", "optim.warmup_epochs")
"""Dotted names of the fields that are chosen where the user did not set them."""
BATCHES = (16, 32, 64, 128)
EPOCH_STEPS = 64
"""Steps of an epoch that a batch leaves, unless it is the smallest."""
LARGE_PEAK, SMALL_PEAK = FINETUNE_FOLDER.optim.peak_lr(128), 2e-3
"""Peak rate of batches below the largest: of networks in general, and of those up to ViT-S, the
only ones measured (docs/recipes.md)."""
SMALL_WIDTH = SIZES["vit-s"]["width"]
WARMUP = 0.1
"""Fraction of the run."""


def choose_tuning(
    images: int, width: int, asked: FinetuneConfig = FINETUNE_FOLDER, *, kept: Collection[str] = ()
) -> tuple[FinetuneConfig, str]:
    """Choose batch, rate and warm-up where the user did not set them.

    The speed of the machine plays no part, so that the same command makes the same choice when it
    resumes its run.

    Args:
        images: number of training images.
        width: width of the network.
        asked: `FINETUNE_FOLDER` with the changes of the user.
        kept: dotted names of the fields that the user set.

    Returns:
        The configuration, and a line for the user.
    """
    fitting = [batch for batch in BATCHES if batch * EPOCH_STEPS <= images]
    batch = asked.batch if "batch" in kept else max(fitting, default=BATCHES[0])
    peak = SMALL_PEAK if width <= SMALL_WIDTH else LARGE_PEAK
    if batch >= FINETUNE_FOLDER.batch:
        peak = FINETUNE_FOLDER.optim.peak_lr(batch)
    fields: dict[str, Any] = {
        "batch": batch,
        "micro_batch": min(MICRO_BATCH, batch),
        "optim.lr": peak * 256 / batch,
        "optim.warmup_epochs": WARMUP * asked.epochs,
    }
    if "optim.name" in kept:  # another optimiser has another rate
        del fields["optim.lr"]
    config = with_fields(asked, {n: value for n, value in fields.items() if n not in kept})
    own = sorted({*kept} & {*CHOSEN})
    given = f"; as you set: {', '.join(own)}" if own else "; options override each of them"
    return config, (
        f"{NAME}: {images:,} training images, network of width {width}; batch "
        f"{config.batch}, base rate {config.optim.lr:g}{given}"
    )
