"""The recipe `folder`: what it chooses, what it leaves, and that facts alone decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mae.config.run import PretrainConfig
from mae.config.serialize import field_types
from mae.errors import ConfigError
from mae.planning.estimate import LEARNT_STEPS
from mae.recipes.catalogue import FOLDER, find_config
from mae.recipes.custom import build_config, kept_fields
from mae.recipes.folder import (
    CHOSEN,
    LARGE,
    SHORT,
    SMALL,
    TINY,
    Facts,
    Row,
    choose,
    small_row,
    with_fields,
)

FEW = Facts(images=300, side=28, channels=1, device="cpu", minutes=3)
CELLS = Facts(images=364, side=480, channels=3, device="cpu", minutes=20)


def chosen(facts: Facts, **fields: Any) -> PretrainConfig:
    asked = build_config("folder", PretrainConfig, fields=fields)
    return choose(facts, asked, kept=kept_fields("folder", fields) or ()).config


def test_few_small_grey_images_on_a_cpu_get_a_small_network_at_their_own_size() -> None:
    config = chosen(FEW, minutes=3.0)

    assert (config.model.image_size, config.model.patch_size) == ((28, 28), 4)
    assert config.model.width < 384 and config.model.depth < 12
    assert (config.optim.name, config.batch, config.minutes) == ("muon", 64, 3.0)
    assert config.warmup_share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("facts", "row"),
    [
        (FEW, TINY),
        (FEW._replace(minutes=60), TINY),
        (FEW._replace(side=64), SHORT),
        (FEW._replace(side=64, minutes=30), SMALL),
        (FEW._replace(side=64, minutes=None), SMALL),
        (FEW._replace(device="cuda"), LARGE),
        (FEW._replace(device="mps"), LARGE),
    ],
)
def test_a_row_of_the_table_follows_from_device_size_and_minutes(facts: Facts, row: Row) -> None:
    config = choose(facts).config

    assert {name: getattr(config.model, name) for name in row.model} == row.model
    assert (config.optim.name, config.optim.lr) == (row.optim, row.lr)
    assert config.objective.target_eps == row.eps
    assert config.augment.crop_scale == row.crop
    assert small_row(config) == (None if row is LARGE else row)


def test_photographs_are_made_small() -> None:
    config = chosen(CELLS, minutes=20.0)

    assert (config.model.image_size, config.model.patch_size) == ((96, 96), 8)
    assert config.augment == FOLDER.augment


def test_a_million_images_on_a_gpu_keep_the_recipe_as_it_was() -> None:
    assert chosen(Facts(images=10**6, side=375, channels=3, device="cuda")) == FOLDER
    assert find_config("folder", PretrainConfig) == FOLDER


def test_images_of_many_channels_are_chosen_for_like_others_of_their_size() -> None:
    config = chosen(Facts(images=900, side=70, channels=6, device="cpu"))

    assert (config.model.image_size, config.model.patch_size) == ((64, 64), 8)


@pytest.mark.parametrize("images", [20, 364, 5_000, 70_000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_minutes_a_run_has_the_steps_in_which_the_demo_learnt(
    images: int, device: str
) -> None:
    config = chosen(Facts(images=images, side=96, channels=3, device=device))

    assert config.epochs * max(1, images // config.batch) >= LEARNT_STEPS


def test_three_lines_say_what_was_found_and_chosen_and_why() -> None:
    found, network, training = choose(CELLS, replace(FOLDER, minutes=20), kept={"minutes"}).reasons

    assert found == (
        "folder: 364 images, 480 pixels along their shorter side, 3 channels; cpu, 20 minutes"
    )
    assert network.startswith("folder: network ViT of width ") and "96 x 96; " in network
    assert training.startswith("folder: training muon, batch 64, base rate ")
    own = choose(CELLS, FOLDER, kept={"batch", "seed"}).reasons[2]
    assert "batch 128" in own and own.endswith("; as you set: batch")


@pytest.mark.parametrize(
    "fields",
    [
        {"optim.lr": 1e-4},
        {"batch": 24},
        {"epochs": 7.0},
        {"model.image_size": (224, 160)},
        {"model.patch_size": 8},
        {"augment.crop_scale": (0.5, 1.0)},
        {"optim.name": "adamw"},
        {"objective.target_eps": 0.1, "micro_batch": 8},
        {"model.depth": 3},
        {"steps": 9, "seed": 3, "optim.warmup_epochs": 2.0},
    ],
)
def test_what_the_user_set_is_not_chosen(fields: dict[str, Any]) -> None:
    config = chosen(CELLS, **fields)

    kept = build_config("folder", PretrainConfig, fields=fields)
    assert config == with_fields(config, fields)
    others = {*field_types(PretrainConfig)} - {*CHOSEN} - {"objective"}
    for name in (name for name in others if "." not in name):
        assert getattr(config, name) == getattr(kept, name), name


def test_every_field_given_leaves_nothing_to_choose() -> None:
    assert choose(CELLS, FOLDER, kept=field_types(PretrainConfig)).config == FOLDER


def test_a_network_of_the_user_is_trained_as_before() -> None:
    fields = {"model": "vit-ti/16"}
    config, before = chosen(CELLS, **fields), build_config("folder", PretrainConfig, fields=fields)

    assert config == before
    small = chosen(CELLS._replace(side=60), **fields)
    assert small == replace(before, model=replace(before.model, image_size=(48, 48)))


def test_another_optimiser_has_its_own_rate_and_a_length_its_own_warm_up() -> None:
    config = chosen(CELLS, **{"optim.name": "adamw", "epochs": 30.0})

    assert config.optim.lr == FOLDER.optim.lr
    assert config.optim.warmup_epochs == 3


def test_patches_fit_an_image_size_that_the_user_set() -> None:
    assert chosen(CELLS, **{"model.image_size": (48, 80)}).model.patch_size == 4
    assert chosen(CELLS, **{"model.image_size": (224, 224)}).model.patch_size == 8
    growing = chosen(CELLS, start_size=(160, 160))
    assert (growing.model.image_size, growing.start_size) == ((224, 224), (160, 160))


def test_a_run_from_weights_takes_their_network() -> None:
    facts = CELLS._replace(from_weights=True)

    config = chosen(facts, **{"model.image_size": (160, 160)})
    assert config.follow_weights and config.resize == (160, 160)
    assert config.optim == FOLDER.optim
    assert not chosen(facts, **{"model.depth": 3}).follow_weights


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (FEW._replace(images=0), "data: got no image, expected at least one; check the folder"),
        (
            FEW._replace(side=3),
            "data: the images have 3 pixels along their shorter side, fewer than a patch of 4; "
            "give larger images, or --image-size 8 to enlarge them",
        ),
    ],
)
def test_images_that_cannot_be_used_are_one_line(facts: Facts, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(facts)

    assert str(caught.value) == message
    assert chosen(FEW._replace(side=3), **{"model.image_size": (8, 8)}).model.patch_size == 4
