"""Recipes of semantic segmentation: mmsegmentation's of ADE20K, and one for your own masks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mae.config.dense import DenseConfig, HeadConfig
from mae.config.model import ModelConfig
from mae.config.run import FitConfig, OptimConfig
from mae.config.segment import SegmentConfig
from mae.config.sizes import model_config
from mae.recipes.folder import with_fields
from mae.recipes.recipe import NOT_FP16, Recipe

NAME = "segment-folder"

_STEPS, _WARMUP, _BATCH = 160_000, 1_500, 16
_EPOCH = 20_210 / _BATCH  # ADE20K's training images
_MODEL = "mmsegmentation, configs/_base_/models/upernet_mae.py"
_DATA = "mmsegmentation, configs/_base_/datasets/ade20k.py"

ADE20K = SegmentConfig(
    model=model_config("vit-b/16", image_size=512),
    steps=_STEPS,
    epochs=_STEPS / _EPOCH,
    batch=_BATCH,
    optim=OptimConfig(
        lr=1e-4 * 256 / _BATCH,
        decay="linear",
        warmup_epochs=_WARMUP / _EPOCH,
        warmup_start=1e-6,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        decay_tokens=True,
    ),
    layer_decay=0.65,
    drop_path=0.1,
    num_classes=150,
    head=HeadConfig(kind="upernet", blocks=(3, 5, 7, 11), channels=768, norm="batch", dropout=0.1),
    dense=DenseConfig(relative_positions="table", layer_scale=1.0),
    auxiliary_weight=0.4,
    short_side=512,
    scale_range=(0.5, 2.0),
    most_of_class=0.75,
    distort=True,
    inference="slide",
    stride=(256, 256),
)

# The published setup, made small for few masks: norms that need no large batch, few channels and
# the plain encoder.
SEGMENT_FOLDER = SegmentConfig(
    follow_weights=True,
    model=ModelConfig(),
    epochs=100,
    batch=_BATCH,
    micro_batch=8,
    optim=OptimConfig(
        lr=5e-4 * 256 / _BATCH,
        warmup_epochs=5,
        betas=(0.9, 0.999),
        decay_tokens=False,
    ),
    layer_decay=0.75,
    drop_path=0.1,
    head=HeadConfig(channels=128, norm="group", auxiliary_channels=64),
)

LARGEST_ON_CPU = 320
"""Most pixels of a side of a training crop on a CPU."""


def choose_crop(
    asked: SegmentConfig, model: ModelConfig, *, on_cpu: bool, kept: Collection[str] = ()
) -> SegmentConfig:
    """Choose size and scale of the crops of `segment-folder` where the user did not set them.

    The crop is as large as the images of the weights, on a CPU at most 320 pixels; images are
    resized so that their short side is that of the crop.

    Args:
        asked: `SEGMENT_FOLDER` with the changes of the user.
        model: network of the weights.
        on_cpu: whether a CPU trains.
        kept: dotted names of the fields that the user set.
    """
    size = fitting_crop(asked, model, on_cpu=on_cpu, kept=kept)
    fields: dict[str, Any] = {"resize": size, "short_side": min(size)}
    return with_fields(asked, {n: value for n, value in fields.items() if n not in kept})


def fitting_crop(
    asked: FitConfig, model: ModelConfig, *, on_cpu: bool, kept: Collection[str]
) -> tuple[int, int]:
    """Return height and width of the images of the weights, on a CPU at most 320 pixels.

    Arguments are those of `choose_crop`; what the user set is returned unchanged.
    """
    most = LARGEST_ON_CPU // model.patch_size * model.patch_size if on_cpu else 2**31
    H, W = asked.resize or model.image_size
    return (H, W) if "resize" in kept else (min(H, most), min(W, most))


SEGMENTING = (
    Recipe(
        name=NAME,
        about="classes of the pixels of your own images with masks, from any weights",
        source="this project, after mmsegmentation's recipe of ADE20K",
        config=SEGMENT_FOLDER,
    ),
    Recipe(
        name="ade20k-upernet-b-160k",
        about="ViT-B/16 at 512 with UPerNet, 160,000 steps on ADE20K",
        source="mmsegmentation, configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
        expected="48.13 mIoU, 48.70 with several scales, from 1600 epochs of normalised pixels",
        config=ADE20K,
        sources={
            "head": _MODEL,
            "head.channels": "the config of the recipe",
            "dense": "mmsegmentation, mmseg/models/backbones/mae.py",
            "dense.layer_scale": "the config of the recipe",
            "auxiliary_weight": _MODEL,
            "augment": _DATA,
            **dict.fromkeys("short_side scale_range most_of_class distort".split(), _DATA),
            "steps": "the config of the recipe",
            "epochs": "160,000 batches of 16 of 20,210 images",
            "optim.lr": "the config's 1e-4, divided by batch 16 / 256",
            "optim.warmup_epochs": "the config's 1,500 steps",
            "optim.decay": "the config: PolyLR of power 1.0",
            "optim.eps": "default of torch",
            "optim.min_lr_scaled": "of no effect at 0",
            "optim.decay_tokens": "layer_decay_optimizer_constructor.py: it exempts names without "
            "their prefix backbone., so none",
            "precision": NOT_FP16,
        },
    ),
)
