"""Recipes of detection: ViTDet's of COCO, and one for your own boxes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.config.model import ModelConfig
from mae.config.run import OptimConfig
from mae.config.sizes import model_config
from mae.recipes.folder import with_fields
from mae.recipes.recipe import NOT_FP16, Recipe
from mae.recipes.segmenting import fitting_crop

NAME = "detect-folder"

_BATCH, _EPOCH = 64, 118_000  # images of a step, and of an epoch as the configs count them
_STEPS, _MILESTONES, _WARMUP = 184_375, (163_889, 177_546), 250
_WARMUP_SHARE = _WARMUP / _STEPS
_B = "detectron2, projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py"
_MODEL = "detectron2, configs/common/models/mask_rcnn_vitdet.py"
_DATA = "detectron2, projects/ViTDet/configs/common/coco_loader_lsj.py"
_OPTIM = "detectron2, configs/common/optim.py"


def _coco(
    size: Literal["b", "l", "h"],
    *,
    steps: int,
    milestones: tuple[int, int],
    global_blocks: tuple[int, ...],
    layer_decay: float,
    drop_path: float,
    exempt: bool,
) -> DetectConfig:
    """Return the configuration of a published Mask R-CNN; `exempt`: norms are not decayed."""
    epochs = steps * _BATCH / _EPOCH
    return DetectConfig(
        model=model_config(f"vit-{size}/16", image_size=1024),
        steps=steps,
        epochs=epochs,
        batch=_BATCH,
        optim=OptimConfig(
            lr=1e-4 * 256 / _BATCH,
            decay="steps",
            milestones=tuple(step / steps for step in milestones),
            warmup_epochs=_WARMUP_SHARE * epochs,
            warmup_start=1e-3,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            decay_tokens=not exempt,
            decay_biases=True,
            decay_norms=not exempt,
        ),
        layer_decay=layer_decay,
        drop_path=drop_path,
        num_classes=80,
        masks=True,
        dense=DenseConfig(window=14, global_blocks=global_blocks, relative_positions="decomposed"),
        pyramid_channels=256,
        sampled_boxes=512,
        scale_range=(0.1, 2.0),
    )


COCO_B = _coco(
    "b",
    steps=_STEPS,
    milestones=_MILESTONES,
    global_blocks=(2, 5, 8, 11),
    layer_decay=0.7,
    drop_path=0.1,
    exempt=True,
)
COCO_L = _coco(
    "l",
    steps=_STEPS,
    milestones=_MILESTONES,
    global_blocks=(5, 11, 17, 23),
    layer_decay=0.8,
    drop_path=0.4,
    exempt=True,
)
COCO_H = _coco(
    "h",
    steps=_STEPS * 3 // 4,
    milestones=(_MILESTONES[0] * 3 // 4, _MILESTONES[1] * 3 // 4),
    global_blocks=(7, 15, 23, 31),
    layer_decay=0.9,
    drop_path=0.5,
    exempt=False,
)

# The published setup, made small for few boxes: the plain encoder, a short warm-up, a cosine.
DETECT_FOLDER = DetectConfig(
    follow_weights=True,
    model=ModelConfig(),
    epochs=100,
    batch=16,
    micro_batch=8,
    optim=OptimConfig(
        lr=5e-4 * 256 / 16,
        warmup_epochs=5,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        decay_tokens=False,
    ),
    layer_decay=0.7,
    drop_path=0.1,
)

ON_CPU = {"pyramid_channels": 64, "sampled_boxes": 64}
"""Fields of `detect-folder` on a CPU, where the heads of 256 channels take most of a step."""


def choose_sizes(
    asked: DetectConfig, model: ModelConfig, *, on_cpu: bool, kept: Collection[str] = ()
) -> DetectConfig:
    """Choose crop and heads of `detect-folder` where the user did not set them.

    The crop is as large as the images of the weights, on a CPU at most 320 pixels; the heads are
    ViTDet's, on a CPU `ON_CPU`.

    Args:
        asked: `DETECT_FOLDER` with the changes of the user.
        model: network of the weights; a new one keeps its image size.
        on_cpu: whether a CPU trains.
        kept: dotted names of the fields that the user set.
    """
    fields: dict[str, Any] = {**ON_CPU} if on_cpu else {}
    if asked.follow_weights:
        fields["resize"] = fitting_crop(asked, model, on_cpu=on_cpu, kept=kept)
    return with_fields(asked, {n: value for n, value in fields.items() if n not in kept})


_SOURCES = {
    "steps": "the config: 184,375 steps, for ViT-H three quarters",
    "epochs": "the steps times 64 of 118,000 images",
    "batch": _DATA,
    "optim.lr": f"{_OPTIM}: 1e-4, divided by batch 64 / 256",
    "optim.betas": _OPTIM,
    "optim.weight_decay": _OPTIM,
    "optim.eps": "default of torch",
    "optim.decay": "the config: MultiStepParamScheduler of 1, 0.1 and 0.01",
    "optim.milestones": "the config: 163,889 and 177,546 of 184,375 steps",
    "optim.warmup_epochs": "the config: 250 of 184,375 steps",
    "optim.min_lr_scaled": "of no effect at 0",
    "optim.decay_tokens": "the config: overrides of pos_embed, none for ViT-H",
    "optim.decay_biases": "detectron2, solver/build.py: as weights",
    "optim.decay_norms": "the config: weight_decay_norm 0, none for ViT-H. detectron2 decays its "
    "own layer norm of maps all the same, this does not",
    "drop_path": "the config of the recipe",
    "layer_decay": "the config: lr_decay_rate",
    "num_classes": "COCO",
    "masks": _MODEL,
    "dense": _MODEL,
    "dense.global_blocks": "the config: window_block_indexes",
    "pyramid_channels": _MODEL,
    "sampled_boxes": "detectron2, configs/common/models/mask_rcnn_fpn.py",
    "scale_range": _DATA,
    "augment": _DATA,
    "precision": NOT_FP16,
}

DETECTING = (
    Recipe(
        name=NAME,
        about="boxes and masks of the objects of your own images, from any weights",
        source="this project, after ViTDet's recipe of COCO",
        config=DETECT_FOLDER,
    ),
    *(
        Recipe(
            name=f"coco-vitdet-{size.lower()}-{epochs}e",
            about=f"ViT-{size}/16 at 1024 with Mask R-CNN, {epochs} epochs on COCO",
            source=_B.replace("_b_100ep", f"_{size.lower()}_{epochs}ep"),
            expected=f"{box} box AP and {mask} mask AP, from 1600 epochs of normalised pixels",
            config=config,
            sources=_SOURCES,
        )
        for size, epochs, box, mask, config in (
            ("B", 100, 51.6, 45.9, COCO_B),
            ("L", 100, 55.5, 49.2, COCO_L),
            ("H", 75, 56.7, 50.2, COCO_H),
        )
    ),
)
