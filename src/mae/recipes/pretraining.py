"""Published pre-training recipes: the paper, its official code, and OpenMMLab.

The `sources` of a recipe name the fields whose value is from another source than the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.recipes.recipe import MODEL_NAMES, MODELS, NOT_FP16, OURS, Recipe

PAPER_B = PretrainConfig(
    model=model_config("vit-b/16"),
    epochs=1600,
    batch=4096,
    optim=OptimConfig(lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40),
    augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=0.5),
)
PAPER_L = replace(PAPER_B, model=model_config("vit-l/16"))
PAPER_H = replace(PAPER_B, model=model_config("vit-h/14"))
PAPER_ABLATION_L = replace(
    PAPER_B, epochs=800, model=model_config("vit-l/16", normalize_target=False)
)

# OpenMMLab does not decay cls and mask token and starts the warm-up above zero.
SEED_B_400 = replace(
    PAPER_B, epochs=400, optim=replace(PAPER_B.optim, warmup_start=1e-4, decay_tokens=False)
)

_PRETRAIN_CODE = "published code, main_pretrain.py"
_PAPER_ELSEWHERE = {
    "epochs": "paper, Table 3",
    "model": "published code, models_mae.py",
    "model.decoder_depth": "paper, Table 1a",
    "model.decoder_width": "paper, Table 1b",
    "model.normalize_target": "paper, Table 3",
    "model.mask_ratio": "paper, Table 1f",
    "optim.eps": _PRETRAIN_CODE,
    **dict.fromkeys(("optim.min_lr", "optim.min_lr_scaled"), _PRETRAIN_CODE),
    "optim.warmup_start": _PRETRAIN_CODE,
    "optim.decay_tokens": "published code: only norms and biases are not decayed",
    "augment": _PRETRAIN_CODE,
}


def _seed_and_paper() -> Iterator[Recipe]:
    yield Recipe(
        name="mae_vit-base-p16_8xb512-coslr-400e_in1k",
        about="ViT-B/16, 400 epochs",
        source="OpenMMLab mmselfsup 0.x, config of the same name",
        expected="83.1 % fine-tuned",
        config=SEED_B_400,
        sources={"precision": f"{OURS}; base file: float32; the -fp16 variant made the 83.1 %"},
    )
    for size, config, top1 in (
        ("b", PAPER_B, 83.6),
        ("l", PAPER_L, 85.9),
        ("h", PAPER_H, 86.9),
    ):
        yield Recipe(
            name=f"paper-vit-{size}",
            about=f"{MODEL_NAMES[size]}, 1600 epochs",
            source="paper, Table 8",
            expected=f"{top1} % fine-tuned (Table 3)",
            config=config,
            sources=_PAPER_ELSEWHERE,
        )
    yield Recipe(
        name="paper-ablation-vit-l",
        about="ViT-L/16, 800 epochs, plain pixels: the paper's default",
        source="paper, Table 8",
        expected="84.9 % fine-tuned, 73.5 % linear (Table 1)",
        config=PAPER_ABLATION_L,
        sources=_PAPER_ELSEWHERE
        | {"epochs": "paper, Table 1", "model.normalize_target": "paper, Table 1d"},
    )
    yield Recipe(
        name="facebook-vit-l-800e",
        about="ViT-L/16, 800 epochs",
        source="published code, PRETRAIN.md",
        expected="85.5 % fine-tuned",
        config=replace(PAPER_L, epochs=800),
        sources=_PAPER_ELSEWHERE
        | dict.fromkeys(("epochs", "model.normalize_target"), "published code, PRETRAIN.md")
        | dict.fromkeys(("model.mask_ratio", "optim.betas", "optim.clip_norm"), _PRETRAIN_CODE)
        | {"precision": NOT_FP16},
    )


def _mmpretrain() -> Iterator[Recipe]:
    for size, epochs, scores in _MMPRETRAIN_SCORES:
        # Only the 800-epoch files start the warm-up lower.
        start = 1e-9 if epochs == 800 else 1e-4
        config = replace(SEED_B_400, model=model_config(MODELS[size]), epochs=epochs)
        yield Recipe(
            name=f"mmpretrain-vit-{size}-{epochs}e",
            about=f"{MODEL_NAMES[size]}, {epochs} epochs",
            source=f"OpenMMLab mmpretrain, configs/mae, the {epochs}e file",
            expected=scores,
            config=replace(config, optim=replace(config.optim, warmup_start=start)),
            sources={"precision": NOT_FP16},
        )


# Source: OpenMMLab mmpretrain, configs/mae; the second score of b 300: mmselfsup 1.x, metafile.
_MMPRETRAIN_SCORES = (
    ("b", 300, "83.1 or 82.8 % fine-tuned, 60.8 % linear"),
    ("b", 400, "83.3 % fine-tuned, 62.5 % linear"),
    ("b", 800, "83.3 % fine-tuned, 65.1 % linear"),
    ("b", 1600, "83.5 % fine-tuned, 67.1 % linear"),
    ("l", 400, "85.2 % fine-tuned, 70.7 % linear"),
    ("l", 800, "85.4 % fine-tuned, 73.7 % linear"),
    ("l", 1600, "85.7 % fine-tuned, 75.5 % linear"),
    ("h", 1600, "86.9 % fine-tuned"),
)


PRETRAINING = (*_seed_and_paper(), *_mmpretrain())
