"""Published fine-tuning recipes: the paper, its official code, and OpenMMLab.

The three disagree: a name begins with its source, and docs/recipes.md shows the differences.
"""

from __future__ import annotations

from mae.config.run import AugmentConfig, FinetuneConfig, MixConfig, ModelConfig, OptimConfig
from mae.recipes.recipe import NOT_FP16, Family

_CODE = "published code, main_finetune.py"
_CODE_ELSEWHERE = {
    "model": "published code, models_vit.py",
    "model.crop_pct": "published code, util/datasets.py",
    "optim.decay_tokens": "published code, util/lr_decay.py",
}

_FACEBOOK = Family(
    config=FinetuneConfig(
        batch=1024,
        pool="mean",
        optim=OptimConfig(
            lr=1e-3,
            min_lr=1e-6,
            warmup_epochs=5,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            decay_tokens=False,
        ),
        layer_decay=0.75,
        augment=AugmentConfig(crop_scale=(0.08, 1.0), flip=0.5),
        rand_augment="rand-m9-mstd0.5-inc1",
        erase=0.25,
        mix=MixConfig(mixup=0.8, cutmix=1.0, switch=0.5, probability=1.0, smoothing=0.1),
    ),
    about="{model} at {edge}, fine-tuned for {epochs} epochs",
    source="published code, FINETUNE.md",
    sources={
        **dict.fromkeys("augment pool mix.switch mix.probability optim.eps".split(), _CODE),
        **dict.fromkeys("optim.min_lr optim.warmup_start optim.clip_norm".split(), _CODE),
        **_CODE_ELSEWHERE,
        "optim.min_lr_scaled": "published code, util/lr_sched.py",
        "precision": NOT_FP16,
    },
)
_AT_448 = {"model.image_size": "no notes at 448; the rest as for ViT-H at 224"}
_FACEBOOK_448 = _FACEBOOK.vary(sources=_FACEBOOK.sources | _AT_448)
_PAPER = _FACEBOOK.vary(
    config={"erase": 0.0, "drop_path": 0.1},
    optim={"min_lr": 0.0},
    source="paper, Table 9",
    sources={
        **dict.fromkeys("augment mix.switch mix.probability".split(), _CODE),
        **dict.fromkeys("optim.eps optim.warmup_start".split(), _CODE),
        **_CODE_ELSEWHERE,
        "model.image_size": "paper, Table 3",
        "pool": "published code; the paper found cls and mean alike",
        "optim.min_lr": "not in the paper; a cosine to zero",
        "optim.min_lr_scaled": "published code, util/lr_sched.py; of no effect at 0",
        "rand_augment": "paper: (9, 0.5); in timm's terms from main_finetune.py",
        "erase": "not in the paper",
    },
)
_SCRATCH = _PAPER.vary(
    config={"batch": 4096, "ema": 0.9999, "layer_decay": 1.0},
    optim={"lr": 1e-4, "weight_decay": 0.3, "betas": (0.9, 0.95), "warmup_epochs": 20},
    about="{model} at {edge}, supervised from scratch, {epochs} epochs",
    source="paper, Table 11",
    sources={**_PAPER.sources, "pool": "not in the paper; as in fine-tuning"},
    pretrained=False,
)
# mmpretrain's absolute rates at batch 1024 (2e-3, 4e-3, 4e-3) are the base rates of FINETUNE.md.
_MM = _FACEBOOK.vary(
    optim={"warmup_start": 1e-4, "min_lr_scaled": False},
    source="OpenMMLab mmpretrain, configs/mae/benchmarks",
    sources={
        "optim.min_lr_scaled": "CosineAnnealingLR of mmengine: eta_min is that of every group",
        "rand_augment": "two operations of timm_increasing, level 9 of 10, std 0.5",
        "mix.switch": "Mixup or CutMix, either as likely",
        "augment": "crops: the default of the library; flips: the config",
    },
)
_MM_448 = _MM.vary(
    config={"model": ModelConfig(crop_pct=448 / 512)},
    sources={
        **_MM.sources,
        "batch": "the 448px file, if on 8 GPUs; its name says 32 x 8 = 256",
        "optim.lr": "the file's 4e-3, divided by batch 1024 / 256",
        "model.crop_pct": "the 448px file: resized to 512",
    },
)
# The peak rate of mmselfsup is 1e-3 * 1024 / 256, twice that of the official code.
_MMSELFSUP = _MM.vary(
    source="OpenMMLab mmselfsup 0.x, config of the same name",
    sources={
        "optim.min_lr_scaled": "StepFixCosineAnnealing: min_lr is that of every group",
        "rand_augment": "timm's create_transform, as the config calls it",
        "augment": "timm's create_transform, as the config calls it",
        "mix.switch": "BatchMixup and BatchCutMix, each with probability 0.5",
        "mix.probability": "BatchMixup and BatchCutMix, together always",
    },
)

FINETUNING = (
    _MMSELFSUP.recipe(
        "vit-base-p16_ft-8xb128-coslr-100e_in1k", "b", 100,
        "83.1 % top-1 from 400 epochs of pre-training", layer_decay=0.65, drop_path=0.1,
    ),
    _PAPER.recipe("paper-ft-vit-b", "b", 100, "83.3 % from plain pixels (Table 7)"),
    _PAPER.recipe("paper-ft-vit-l", "l", 50, "84.9 % from 800 epochs of plain pixels (Table 1)"),
    _PAPER.recipe("paper-ft-vit-h", "h", 50, "86.2 % from plain pixels (Table 7)", drop_path=0.2),
    _PAPER.recipe(
        "paper-ft-vit-h-448", "h", 50, "87.8 % from 1600 epochs of normalised pixels (Table 3)",
        edge=448, drop_path=0.2,
    ),
    _FACEBOOK.recipe(
        "facebook-ft-vit-b", "b", 100, "83.57 ± 0.08 % over 4 seeds",
        optim={"lr": 5e-4}, layer_decay=0.65, drop_path=0.1,
    ),
    _FACEBOOK.recipe("facebook-ft-vit-l", "l", 50, "85.87 ± 0.07 % over 4 seeds", drop_path=0.2),
    _FACEBOOK.recipe("facebook-ft-vit-h", "h", 50, "86.928 %, the released model", drop_path=0.3),
    _FACEBOOK_448.recipe(
        "facebook-ft-vit-h-448", "h", 50, "not published for this code", edge=448, drop_path=0.3
    ),
    _MM.recipe(
        "mmpretrain-ft-vit-b", "b", 100, "83.5 % from its 1600 epochs",
        optim={"lr": 5e-4}, layer_decay=0.65, drop_path=0.1,
    ),
    _MM.recipe("mmpretrain-ft-vit-l", "l", 50, "85.7 % from its 1600 epochs", drop_path=0.2),
    _MM.recipe("mmpretrain-ft-vit-h", "h", 50, "86.9 % from its 1600 epochs", drop_path=0.3),
    _MM_448.recipe(
        "mmpretrain-ft-vit-h-448", "h", 50, "87.3 % from its 1600 epochs", edge=448, drop_path=0.3
    ),
    _SCRATCH.recipe("paper-scratch-vit-b", "b", 300, "82.3 % top-1 (Table 3)"),
    _SCRATCH.recipe("paper-scratch-vit-l", "l", 200, "82.6 % top-1 (Table 3)", drop_path=0.2),
    _SCRATCH.recipe("paper-scratch-vit-h", "h", 200, "83.1 % top-1 (Table 3)", drop_path=0.2),
)  # fmt: skip
