"""Recipes against the tables they come from, typed from those and not from our code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.config.detect import DetectConfig
from mae.config.model import ModelConfig
from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig, resolve_crop_pct
from mae.config.segment import SegmentConfig
from mae.config.serialize import field_types
from mae.config.sizes import size_name
from mae.data.batching.batch import Batch
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, Recipe, find_config, find_recipe
from mae.recipes.detecting import DETECT_FOLDER, choose_sizes
from mae.recipes.segmenting import SEGMENT_FOLDER, choose_crop
from mae.runs.state import TrainState
from mae.train.schedule import fixed_rate_at, rate_at
from mae.train.step import OptimiserStep

SEED_PRETRAINING = "mae_vit-base-p16_8xb512-coslr-400e_in1k"
SEED_FINETUNING = "vit-base-p16_ft-8xb128-coslr-100e_in1k"

# spec 2; batch 4096 and a peak rate of 2.4e-3 everywhere, 40 epochs of warm-up.
# model, epochs, start of the warm-up, tokens decayed, normalised pixels
PRETRAINING = {
    SEED_PRETRAINING: ("vit-b/16", 400, 1e-4, False, True),
    "paper-vit-b": ("vit-b/16", 1600, 0.0, True, True),
    "paper-vit-l": ("vit-l/16", 1600, 0.0, True, True),
    "paper-vit-h": ("vit-h/14", 1600, 0.0, True, True),
    "paper-ablation-vit-l": ("vit-l/16", 800, 0.0, True, False),
    "facebook-vit-l-800e": ("vit-l/16", 800, 0.0, True, True),
    "mmpretrain-vit-b-300e": ("vit-b/16", 300, 1e-4, False, True),
    "mmpretrain-vit-b-400e": ("vit-b/16", 400, 1e-4, False, True),
    "mmpretrain-vit-b-800e": ("vit-b/16", 800, 1e-9, False, True),
    "mmpretrain-vit-b-1600e": ("vit-b/16", 1600, 1e-4, False, True),
    "mmpretrain-vit-l-400e": ("vit-l/16", 400, 1e-4, False, True),
    "mmpretrain-vit-l-800e": ("vit-l/16", 800, 1e-9, False, True),
    "mmpretrain-vit-l-1600e": ("vit-l/16", 1600, 1e-4, False, True),
    "mmpretrain-vit-h-1600e": ("vit-h/14", 1600, 1e-4, False, True),
}
# FINETUNE.md and the paper, Table 9: batch 1024, 5 epochs of warm-up, betas 0.9 and 0.999,
# decay 0.05 everywhere.
# model, edge, epochs, peak rate, floor, start of the warm-up, layer decay, drop path, erasing
FINETUNING = {
    "paper-ft-vit-b": ("vit-b/16", 224, 100, 4e-3, 0.0, 0.0, 0.75, 0.1, 0.0),
    "paper-ft-vit-l": ("vit-l/16", 224, 50, 4e-3, 0.0, 0.0, 0.75, 0.1, 0.0),
    "paper-ft-vit-h": ("vit-h/14", 224, 50, 4e-3, 0.0, 0.0, 0.75, 0.2, 0.0),
    "paper-ft-vit-h-448": ("vit-h/14", 448, 50, 4e-3, 0.0, 0.0, 0.75, 0.2, 0.0),
    "facebook-ft-vit-b": ("vit-b/16", 224, 100, 2e-3, 1e-6, 0.0, 0.65, 0.1, 0.25),
    "facebook-ft-vit-l": ("vit-l/16", 224, 50, 4e-3, 1e-6, 0.0, 0.75, 0.2, 0.25),
    "facebook-ft-vit-h": ("vit-h/14", 224, 50, 4e-3, 1e-6, 0.0, 0.75, 0.3, 0.25),
    "facebook-ft-vit-h-448": ("vit-h/14", 448, 50, 4e-3, 1e-6, 0.0, 0.75, 0.3, 0.25),
    SEED_FINETUNING: ("vit-b/16", 224, 100, 4e-3, 1e-6, 1e-4, 0.65, 0.1, 0.25),
    "mmpretrain-ft-vit-b": ("vit-b/16", 224, 100, 2e-3, 1e-6, 1e-4, 0.65, 0.1, 0.25),
    "mmpretrain-ft-vit-l": ("vit-l/16", 224, 50, 4e-3, 1e-6, 1e-4, 0.75, 0.2, 0.25),
    "mmpretrain-ft-vit-h": ("vit-h/14", 224, 50, 4e-3, 1e-6, 1e-4, 0.75, 0.3, 0.25),
    "mmpretrain-ft-vit-h-448": ("vit-h/14", 448, 50, 4e-3, 1e-6, 1e-4, 0.75, 0.3, 0.25),
}
# The paper, Table 11: model, epochs, drop path.
SCRATCH = {
    "paper-scratch-vit-b": ("vit-b/16", 300, 0.1),
    "paper-scratch-vit-l": ("vit-l/16", 200, 0.2),
    "paper-scratch-vit-h": ("vit-h/14", 200, 0.2),
}
OURS = {"folder", "continue", "demo", "finetune-folder", "segment-folder", "detect-folder"}
ADE20K = "ade20k-upernet-b-160k"
# detectron2, projects/ViTDet/configs/COCO/mask_rcnn_vitdet_{b_100ep,l_100ep,h_75ep}.py, and the
# scores of its README.md: model, steps, milestones, blocks of global attention, layer decay, drop
# path, whether norms and positions are decayed, AP of boxes and masks
COCO: dict[str, tuple[Any, ...]] = {
    "coco-vitdet-b-100e": (
        "vit-b/16", 184_375, (163_889, 177_546), (2, 5, 8, 11), 0.7, 0.1, False, "51.6", "45.9",
    ),
    "coco-vitdet-l-100e": (
        "vit-l/16", 184_375, (163_889, 177_546), (5, 11, 17, 23), 0.8, 0.4, False, "55.5", "49.2",
    ),
    "coco-vitdet-h-75e": (
        "vit-h/16", 138_281, (122_916, 133_159), (7, 15, 23, 31), 0.9, 0.5, True, "56.7", "50.2",
    ),
}  # fmt: skip


def model_name(config: FitConfig) -> str:
    model = config.model
    return size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)


def test_every_recipe_of_others_is_held_against_a_table() -> None:
    names = [recipe.name for recipe in RECIPES]

    assert len(names) == len(set(names))
    assert set(names) == {*OURS, *PRETRAINING, *FINETUNING, *SCRATCH, ADE20K, *COCO}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pre_training_resolves_to_the_published_numbers(name: str) -> None:
    config = find_config(name, PretrainConfig)
    optim, augment = config.optim, config.augment

    assert PRETRAINING[name] == (
        model_name(config),
        config.epochs,
        optim.warmup_start,
        optim.decay_tokens,
        config.objective.normalize_target,
    )
    assert config.batch == 4096 and optim.peak_lr(config.batch) == pytest.approx(2.4e-3)
    assert (optim.warmup_epochs, optim.min_lr, optim.clip_norm) == (40, 0.0, None)
    assert (optim.weight_decay, optim.betas, optim.eps) == (0.05, (0.9, 0.95), 1e-8)
    assert (augment.crop_scale, augment.crop_ratio) == ((0.2, 1.0), (3 / 4, 4 / 3))
    assert (augment.flip, config.objective.mask_ratio, config.objective.target_eps) == (
        0.5,
        0.75,
        1e-6,
    )


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_resolves_to_the_published_numbers(name: str) -> None:
    config = find_config(name, FinetuneConfig)
    optim = config.optim

    resolved = (
        config.epochs,
        optim.peak_lr(config.batch),
        optim.min_lr,
        optim.warmup_start,
        config.layer_decay,
        config.drop_path,
        config.erase,
    )
    model, edge, *numbers = FINETUNING[name]
    assert (model_name(config), config.model.image_size) == (model, (edge, edge))
    assert resolved == pytest.approx(tuple(numbers), rel=1e-12)
    assert (config.batch, optim.warmup_epochs, config.pool) == (1024, 5, "mean")
    assert (optim.weight_decay, optim.betas, optim.eps) == (0.05, (0.9, 0.999), 1e-8)
    assert (config.ema, optim.clip_norm, config.train_blocks) == (None, None, None)
    assert not optim.decay_tokens
    assert optim.min_lr_scaled == (not name.startswith("mmpretrain") and name != SEED_FINETUNING)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_evaluation_shows_the_published_fraction_of_an_image(recipe: Recipe) -> None:
    # 224 of 256 at 224; at 448 the published code shows all, OpenMMLab 448 of 512; the demo shows
    # whole images in training already, and so do dense tasks.
    expected = {448: 1.0, 28: 1.0}.get(recipe.config.model.image_size[0], 0.875)
    if recipe.name == "mmpretrain-ft-vit-h-448":
        expected = 0.875
    if recipe.kind in ("segmentation", "detection"):
        expected = 1.0

    assert resolve_crop_pct(recipe.config.model, recipe.config.augment).crop_pct == expected


@pytest.mark.parametrize("name", [*FINETUNING, *SCRATCH])
def test_only_the_linear_probe_clips_its_crops(name: str) -> None:
    assert not find_config(name, FinetuneConfig).augment.crop_clip


@pytest.mark.parametrize("name", [*FINETUNING, *SCRATCH])
def test_images_and_labels_are_mixed_as_published(name: str) -> None:
    config = find_config(name, FinetuneConfig)
    mix, augment = config.mix, config.augment

    assert (mix.mixup, mix.cutmix, mix.smoothing) == (0.8, 1.0, 0.1)
    assert (mix.switch, mix.probability) == (0.5, 1.0)
    assert config.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (augment.crop_scale, augment.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (augment.flip, config.num_classes) == (0.5, 1000)


@pytest.mark.parametrize("name", SCRATCH)
def test_training_from_scratch_resolves_to_table_11(name: str) -> None:
    config = find_config(name, FinetuneConfig)
    optim = config.optim

    assert SCRATCH[name] == (model_name(config), config.epochs, config.drop_path)
    assert config.batch == 4096 and optim.peak_lr(4096) == pytest.approx(1.6e-3)
    assert (optim.weight_decay, optim.betas, optim.warmup_epochs) == (0.3, (0.9, 0.95), 20)
    assert (config.ema, config.layer_decay, config.erase) == (0.9999, 1.0, 0.0)
    assert "--weights" not in find_recipe(name).command


# mmsegmentation: configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py and its bases.
def test_segmentation_of_ade20k_resolves_to_the_published_numbers() -> None:
    config = find_config(ADE20K, SegmentConfig)
    optim, head, dense = config.optim, config.head, config.dense

    assert (model_name(config), config.model.image_size) == ("vit-b/16", (512, 512))
    assert (config.steps, config.batch, config.num_classes) == (160_000, 16, 150)
    assert optim.peak_lr(config.batch) == pytest.approx(1e-4, rel=1e-12)
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.999), 0.05)
    assert (optim.min_lr, optim.warmup_start, optim.decay) == (0.0, 1e-6, "linear")
    assert config.warmup_share * 160_000 == pytest.approx(1_500, rel=1e-12)
    assert (config.layer_decay, config.drop_path, config.train_blocks) == (0.65, 0.1, None)
    assert (head.kind, head.blocks, head.channels) == ("upernet", (3, 5, 7, 11), 768)
    assert (head.norm, head.dropout, head.auxiliary_channels) == ("batch", 0.1, 256)
    assert config.auxiliary_weight == 0.4
    assert (dense.relative_positions, dense.layer_scale, dense.window) == ("table", 1.0, None)
    assert dense.has_cls and optim.clip_norm is None
    assert (config.short_side, config.scale_range) == (512, (0.5, 2.0))
    assert (config.most_of_class, config.distort, config.augment.flip) == (0.75, True, 0.5)
    assert (config.inference, config.stride) == ("slide", (256, 256))


# LinearLR from 1e-6 of the rate over 1,500 steps, PolyLR of power 1 to 0 at step 160,000.
def test_the_rate_of_ade20k_is_a_line_after_the_warm_up() -> None:
    config = find_config(ADE20K, SegmentConfig)
    expected = {0: 1e-10, 750: 0.5e-4 * (1 + 1e-6), 1_500: 1e-4, 80_750: 5e-5, 160_000: 0.0}

    found = {step: rate_at(step, num_steps=160_000, config=config, batch=16) for step in expected}

    assert found == pytest.approx(expected, rel=1e-9, abs=1e-17)


@pytest.mark.parametrize("name", COCO)
def test_detection_of_coco_resolves_to_the_published_numbers(name: str) -> None:
    config, recipe = find_config(name, DetectConfig), find_recipe(name)
    model, steps, milestones, blocks, layer_decay, drop_path, all_decayed, box, mask = COCO[name]
    optim, dense = config.optim, config.dense

    assert (model_name(config), config.model.image_size) == (model, (1024, 1024))
    assert (config.steps, config.batch, config.num_classes) == (steps, 64, 80)
    assert config.epochs == pytest.approx(75 if "75e" in name else 100, rel=1e-5)
    assert optim.peak_lr(config.batch) == pytest.approx(1e-4, rel=1e-12)
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.999), 0.1)
    assert (optim.min_lr, optim.warmup_start, optim.clip_norm) == (0.0, 1e-3, None)
    assert config.warmup_share == pytest.approx(250 / 184_375, rel=1e-12)
    assert [round(part * steps) for part in optim.milestones] == [*milestones]
    assert (config.layer_decay, config.drop_path) == (layer_decay, drop_path)
    assert (dense.window, dense.global_blocks) == (14, blocks)
    assert (dense.relative_positions, dense.layer_scale) == ("decomposed", None)
    assert not dense.has_cls
    assert (optim.decay_biases, optim.decay_norms, optim.decay_tokens) == (True, *[all_decayed] * 2)
    assert (config.masks, config.pyramid_channels, config.sampled_boxes) == (True, 256, 512)
    assert (config.scale_range, config.augment.flip) == ((0.1, 2.0), 0.5)
    assert recipe.expected.startswith(f"{box} box AP and {mask} mask AP")
    assert recipe.command == f"mae detect train {name} --data DIR --weights W"


def test_the_page_shows_the_numbers_of_the_recipes_of_coco() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    lines = page.partition("### Detection of COCO\n\n")[2].partition("\n\n")[0].splitlines()
    header, _, *rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]

    for place, name in enumerate(header[1:], start=1):
        config, score = find_config(name, DetectConfig), find_recipe(name).expected.split()
        optim, yes_or_no = config.optim, {True: "yes", False: "no"}
        assert config.steps is not None
        steps = [f"{round(part * config.steps):,}" for part in optim.milestones]
        assert [row[place] for row in rows] == [
            f"{config.steps:,}",
            ", ".join(steps),
            f"{config.layer_decay}",
            f"{config.drop_path}",
            ", ".join(map(str, config.dense.global_blocks)),
            yes_or_no[optim.decay_norms],
            yes_or_no[optim.decay_tokens],
            score[0],
            score[4],
        ]


# WarmupParamScheduler over MultiStepParamScheduler: from a thousandth of the rate over 250 of
# 184,375 steps (187 of 138,281), then 1, 0.1 and 0.01 of it from the steps of the milestones on.
@pytest.mark.parametrize("name", COCO)
def test_the_rate_of_coco_falls_in_steps(name: str) -> None:
    config, (_, steps, (first, second), *_) = find_config(name, DetectConfig), COCO[name]
    expected = {0: 1e-7, 251: 1e-4, first - 1: 1e-4, first: 1e-5, second - 1: 1e-5, second: 1e-6}
    if steps == 184_375:
        expected |= {125: 0.5e-4 * (1 + 1e-3), 250: 1e-4}
    else:  # 100 of 187.5
        expected |= {100: 1e-7 + (1e-4 - 1e-7) * 100 * 184_375 / (250 * 138_281)}

    found = {step: rate_at(step, num_steps=steps, config=config, batch=64) for step in expected}

    assert found == pytest.approx(expected, rel=1e-9)
    assert rate_at(steps, num_steps=steps, config=config, batch=64) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("device", "kept", "resize", "channels", "boxes"),
    [
        ("cuda", (), (448, 640), 256, 512),
        ("cpu", (), (320, 320), 64, 64),
        ("cpu", ("resize", "pyramid_channels"), (448, 640), 256, 64),
    ],
)
def test_a_detector_of_your_own_images_fits_a_cpu(
    device: str, kept: tuple[str, ...], resize: tuple[int, int], channels: int, boxes: int
) -> None:
    config = dataclasses.replace(DETECT_FOLDER, resize=(448, 640))

    found = choose_sizes(config, ModelConfig(), on_cpu=device == "cpu", kept=kept)

    assert (found.resize, found.pyramid_channels, found.sampled_boxes) == (resize, channels, boxes)


@pytest.mark.parametrize(
    ("device", "kept", "asked", "size", "short"),
    [
        ("cpu", (), None, (224, 224), 224),
        ("cpu", (), (448, 640), (320, 320), 320),
        ("cuda", (), (448, 640), (448, 640), 448),
        ("cpu", ("resize",), (448, 640), (448, 640), 448),
        ("cpu", ("short_side",), None, (224, 224), None),
    ],
)
def test_crops_of_your_own_images_fit_a_cpu(
    device: str, kept: tuple[str, ...], asked: Any, size: tuple[int, int], short: int | None
) -> None:
    config = dataclasses.replace(SEGMENT_FOLDER, resize=asked)

    found = choose_crop(config, ModelConfig(), on_cpu=device == "cpu", kept=kept)

    assert (found.resize, found.short_side) == (size, short)


# peak * (start + (1 - start) * t) in the warm-up, then floor + (peak - floor) / 2 * (1 + cos),
# worked out by hand at the beginning, in the warm-up, at its end, and where the cosine is
# cos 0, 1/2, 0 and -1.
@pytest.mark.parametrize(
    ("name", "rates"),
    [
        (
            "facebook-ft-vit-b",
            {0: 0.0, 1: 4e-4, 2.5: 1e-3, 5: 2e-3, 52.5: 1.0005e-3, 100: 1e-6},
        ),
        (
            SEED_FINETUNING,
            {0: 4e-7, 2.5: 2.0002e-3, 5: 4e-3, 52.5: 2.0005e-3, 100: 1e-6},
        ),
        ("facebook-ft-vit-l", {0: 0.0, 1: 8e-4, 5: 4e-3, 20: 3.00025e-3, 50: 1e-6}),
        ("facebook-ft-vit-h", {0: 0.0, 4: 3.2e-3, 27.5: 2.0005e-3, 50: 1e-6}),
        ("mmpretrain-ft-vit-h-448", {0: 4e-7, 5: 4e-3, 27.5: 2.0005e-3, 50: 1e-6}),
        ("paper-ft-vit-h", {0: 0.0, 1: 8e-4, 27.5: 2e-3, 50: 0.0}),
        ("paper-scratch-vit-b", {0: 0.0, 10: 8e-4, 20: 1.6e-3, 160: 8e-4, 300: 0.0}),
    ],
)
def test_the_rate_follows_the_published_formula(name: str, rates: dict[float, float]) -> None:
    config = find_config(name, FinetuneConfig)
    steps = round(config.epochs * 1250)

    ours = {
        epoch: rate_at(round(epoch * 1250), num_steps=steps, config=config, batch=config.batch)
        for epoch in rates
    }

    assert ours == pytest.approx(rates, rel=1e-9, abs=1e-15)


# OpenMMLab: CosineAnnealingLR(eta_min=1e-6) anneals the rate of each group of parameters from its
# own base, lr * decay ** (depth + 1 - layer), to eta_min itself:
# eta_min + (base - eta_min) * (1 + cos(pi * t)) / 2, after a linear warm-up of the base from 1e-4.
# Published code, util/lr_sched.py: the whole curve, its floor too, times the scale of the group.
@pytest.mark.parametrize(
    ("name", "layer", "rates"),
    [
        # base 2e-3 * 0.65 ** 13 = 7.394411782037429e-6
        (
            "mmpretrain-ft-vit-b",
            0,
            {0: 7.394411782037429e-10, 5: 7.394411782037429e-6, 52.5: 4.1972058910187145e-6,
             100: 1e-6},
        ),
        ("mmpretrain-ft-vit-b", 13, {5: 2e-3, 52.5: 1.0005e-3, 100: 1e-6}),
        # base 4e-3 * 0.65 ** 12
        (SEED_FINETUNING, 1, {5: 2.2752036252422863e-5, 100: 1e-6}),
        # base 4e-3 * 0.75 ** 33 = 3.0136e-7, below eta_min: this layer's rate rises.
        (
            "mmpretrain-ft-vit-h",
            0,
            {5: 4e-3 * 0.75**33, 27.5: (1e-6 + 4e-3 * 0.75**33) / 2, 50: 1e-6},
        ),
        (
            "facebook-ft-vit-b",
            0,
            {0: 0.0, 5: 7.394411782037429e-6, 52.5: 3.6990544939642235e-6,
             100: 3.697205891018715e-9},
        ),
    ],
)  # fmt: skip
def test_each_layer_s_rate_ends_where_its_source_ends(
    name: str, layer: int, rates: dict[float, float]
) -> None:
    config = find_config(name, FinetuneConfig)
    steps = round(config.epochs * 1250)
    scale = config.layer_decay ** (config.model.depth + 1 - layer)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "scale": scale}])
    device = torch.device("cpu")
    step = OptimiserStep(loss=lambda m, b: m(b.images).sum(), config=config, device=device)
    images = Batch(torch.ones(1, 1), torch.zeros(1, 0), *torch.zeros(2, 1, dtype=torch.int64))

    ours = {}
    for epoch in rates:
        number = round(epoch * 1250)
        lr = rate_at(number, num_steps=steps, config=config, batch=config.batch)
        fixed = fixed_rate_at(number, num_steps=steps, config=config)
        step(TrainState(model, optimizer), images, lr=lr, fixed_lr=fixed)
        ours[epoch] = optimizer.param_groups[0]["lr"]

    assert ours == pytest.approx(rates, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_number_has_a_source(recipe: Recipe) -> None:
    paths = field_types(type(recipe.config))
    groups = {path.rpartition(".")[0] for path in paths} - {""}

    assert all(recipe.source_of(path) for path in paths)
    assert set(recipe.sources) <= {*paths, *groups}


def test_a_source_of_a_field_wins_over_that_of_its_group_and_that_over_the_recipe() -> None:
    recipe = find_recipe("paper-ft-vit-b")

    assert recipe.source_of("layer_decay") == "paper, Table 9"
    assert recipe.source_of("augment.crop_scale") == "published code, main_finetune.py"
    assert recipe.source_of("model.width") == "published code, models_vit.py"
    assert recipe.source_of("model.image_size") == "paper, Table 3"
    assert recipe.source_of("seed") == "this project"


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no 'papr-ft-vit-l'; did you mean paper-ft-vit-l\?"):
        find_recipe("papr-ft-vit-l")
    with pytest.raises(ConfigError, match="no 'zzz'; mae recipes list shows them"):
        find_recipe("zzz")


def test_a_recipe_of_the_other_kind_is_refused_with_its_own_command() -> None:
    with pytest.raises(ConfigError) as caught:
        find_config("paper-ft-vit-b", PretrainConfig)

    assert str(caught.value) == (
        "recipe: paper-ft-vit-b is for fine-tuning; "
        "use it as mae finetune paper-ft-vit-b --data DIR --weights W"
    )


def test_recipes_are_not_changed_by_what_is_made_of_them() -> None:
    config: Any = find_config("paper-ft-vit-b", FinetuneConfig)

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
