"""Published pre-training recipes: the paper, its official code, and OpenMMLab.

The `sources` of a recipe name the fields whose value is from another source than the rest.
"""

from __future__ import annotations

from mae.config.run import AugmentConfig, ObjectiveConfig, OptimConfig, PretrainConfig
from mae.recipes.recipe import NOT_FP16, OURS, Family

_CODE = "published code, main_pretrain.py"
_NOTES = "published code, PRETRAIN.md"

_PAPER = Family(
    config=PretrainConfig(
        batch=4096,
        optim=OptimConfig(lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40),
        augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=0.5),
    ),
    about="{model}, {epochs} epochs",
    source="paper, Table 8",
    sources={
        "epochs": "paper, Table 3",
        "model": "published code, models_mae.py",
        "objective": "published code, models_mae.py",
        "model.decoder_depth": "paper, Table 1a",
        "model.decoder_width": "paper, Table 1b",
        "objective.normalize_target": "paper, Table 3",
        "objective.mask_ratio": "paper, Table 1f",
        **dict.fromkeys("optim.eps optim.min_lr optim.min_lr_scaled".split(), _CODE),
        **dict.fromkeys("optim.warmup_start augment".split(), _CODE),
        "optim.decay_tokens": "published code: only norms and biases are not decayed",
    },
)
_ABLATION = _PAPER.vary(
    config={"objective": ObjectiveConfig(normalize_target=False)},
    about="{model}, {epochs} epochs, plain pixels: the paper's default",
    sources={
        **_PAPER.sources,
        "epochs": "paper, Table 1",
        "objective.normalize_target": "paper, Table 1d",
    },
)
_FACEBOOK = _PAPER.vary(
    source=_NOTES,
    sources={
        **_PAPER.sources,
        **dict.fromkeys(("epochs", "objective.normalize_target"), _NOTES),
        **dict.fromkeys(("objective.mask_ratio", "optim.betas", "optim.clip_norm"), _CODE),
        "precision": NOT_FP16,
    },
)
# OpenMMLab does not decay cls and mask token and starts the warm-up above zero.
_MM = _PAPER.vary(
    optim={"warmup_start": 1e-4, "decay_tokens": False},
    source="OpenMMLab mmpretrain, configs/mae, the {epochs}e file",
    sources={"precision": NOT_FP16},
)
_MMSELFSUP = _MM.vary(
    source="OpenMMLab mmselfsup 0.x, config of the same name",
    sources={"precision": f"{OURS}; base file: float32; the -fp16 variant made the 83.1 %"},
)
_MM_800 = _MM.vary(optim={"warmup_start": 1e-9})  # only the 800-epoch files start lower

# The second score of mmpretrain-vit-b-300e is from the metafile of mmselfsup 1.x.
PRETRAINING = (
    _MMSELFSUP.recipe("mae_vit-base-p16_8xb512-coslr-400e_in1k", "b", 400, "83.1 % fine-tuned"),
    _PAPER.recipe("paper-vit-b", "b", 1600, "83.6 % fine-tuned (Table 3)"),
    _PAPER.recipe("paper-vit-l", "l", 1600, "85.9 % fine-tuned (Table 3)"),
    _PAPER.recipe("paper-vit-h", "h", 1600, "86.9 % fine-tuned (Table 3)"),
    _ABLATION.recipe(
        "paper-ablation-vit-l", "l", 800, "84.9 % fine-tuned, 73.5 % linear (Table 1)"
    ),
    _FACEBOOK.recipe("facebook-vit-l-800e", "l", 800, "85.5 % fine-tuned"),
    _MM.recipe("mmpretrain-vit-b-300e", "b", 300, "83.1 or 82.8 % fine-tuned, 60.8 % linear"),
    _MM.recipe("mmpretrain-vit-b-400e", "b", 400, "83.3 % fine-tuned, 62.5 % linear"),
    _MM_800.recipe("mmpretrain-vit-b-800e", "b", 800, "83.3 % fine-tuned, 65.1 % linear"),
    _MM.recipe("mmpretrain-vit-b-1600e", "b", 1600, "83.5 % fine-tuned, 67.1 % linear"),
    _MM.recipe("mmpretrain-vit-l-400e", "l", 400, "85.2 % fine-tuned, 70.7 % linear"),
    _MM_800.recipe("mmpretrain-vit-l-800e", "l", 800, "85.4 % fine-tuned, 73.7 % linear"),
    _MM.recipe("mmpretrain-vit-l-1600e", "l", 1600, "85.7 % fine-tuned, 75.5 % linear"),
    _MM.recipe("mmpretrain-vit-h-1600e", "h", 1600, "86.9 % fine-tuned"),
)
