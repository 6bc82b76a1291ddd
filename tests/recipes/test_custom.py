from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mae.cli.options import options_of
from mae.cli.verbs.looking import recipes_list
from mae.cli.verbs.training import pretrain
from mae.config.run import ObjectiveConfig, PretrainConfig
from mae.config.serialize import field_types, from_dict, to_dict
from mae.errors import ConfigError
from mae.recipes.catalogue import FOLDER, RECIPES, Recipe, find_recipe
from mae.recipes.custom import build_config, name_fields, read_fields, recipe_toml, to_toml


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_shown_recipe_is_taken_back_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(recipe_toml(recipe))

    assert from_dict(type(recipe.config), read_fields(file), where="mine") == recipe.config


def test_a_shown_recipe_names_the_sources_of_its_fields() -> None:
    text = recipe_toml(find_recipe("paper-ft-vit-b"))

    assert "# source: paper, Table 9\n" in text
    assert "# source of erase: not in the paper\n" in text
    assert "# mae finetune paper-ft-vit-b --data DIR --weights W\n" in text


def test_a_run_json_repeats_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    config = find_recipe("demo").config
    file.write_text(json.dumps({"recipe": "demo", "config": to_dict(config), "data": {}}))

    assert build_config("folder", PretrainConfig, file=file, fields={}) == config


def test_a_file_of_a_few_fields_changes_those_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 3\nmicro_batch = "none"\n[optim]\nlr = 1e-3\n')

    config = build_config("folder", PretrainConfig, file=file, fields={})

    assert (config.epochs, config.micro_batch, config.optim.lr) == (3.0, None, 1e-3)
    assert config.optim.warmup_epochs == FOLDER.optim.warmup_epochs
    assert config.model == FOLDER.model


def test_fields_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("batch = 8\nseed = 5\n")

    config = build_config("demo", PretrainConfig, file=file, fields={"seed": 7, "optim.lr": 0.5})

    assert (config.batch, config.seed, config.optim.lr) == (8, 7, 0.5)
    assert config.model == find_recipe("demo").config.model


def test_a_length_takes_the_place_of_another_length(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("minutes = 5\n")

    assert build_config("folder", PretrainConfig, file=file, fields={"steps": 9}).minutes is None
    assert build_config("folder", PretrainConfig, file=file, fields={"epochs": 9.0}).minutes is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlrr = 1\n", "unknown key 'optim.lrr' in {file}; did you mean 'optim.lr'?"),
        ("epochs = 'many'\n", "epochs: expected a number, got 'many'"),
        ("epochs = \n", "config: {file}: is not TOML: Invalid value (at line 1, column 10)"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong_in_it(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        build_config("folder", PretrainConfig, file=file, fields={})

    assert str(caught.value) == message.format(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config: .*nope\.toml: no such file"):
        build_config("folder", PretrainConfig, file=tmp_path / "nope.toml", fields={})


def test_toml_is_read_back_as_it_was_written() -> None:
    values = {"a": 1e-08, "b": "none", "c": [0.9, 0.95], "d": {"e": True, "f": {"g": 'x"\\y'}}}

    assert tomllib.loads(to_toml(values)) == values


def test_every_recipe_is_listed_with_its_source_and_published_result() -> None:
    rows: Any = recipes_list().values["recipes"]

    assert [row["name"] for row in rows] == [recipe.name for recipe in RECIPES]
    assert all(row["about"] and row["source"] and row["expected"] for row in rows)


def test_keywords_are_the_names_of_the_options() -> None:
    keywords = {
        "lr": 0.01,
        "image_size": 96,
        "optim": {"weight_decay": 0.2},
        "objective": ObjectiveConfig(mask_ratio=0.5),
        "augment.flip": 0.1,
        "model": "vit-ti/8",
    }

    config = build_config("folder", PretrainConfig, fields=name_fields(PretrainConfig, keywords))

    assert (config.optim.lr, config.optim.weight_decay) == (0.01, 0.2)
    assert (config.model.width, config.model.patch_size) == (192, 8)
    assert config.model.image_size == (96, 96)
    assert (config.objective.mask_ratio, config.augment.flip) == (0.5, 0.1)
    assert config.augment.crop_scale == FOLDER.augment.crop_scale


def test_every_option_of_a_recipe_is_a_keyword() -> None:
    options = [o for o in options_of(pretrain) if o.path in field_types(PretrainConfig)]

    names = {option.flag.replace("-", "_"): option.default for option in options}

    assert len(names) > 50
    assert set(name_fields(PretrainConfig, names)) == {option.path for option in options}


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("epoch", "; did you mean epochs?"),
        ("weight_decay", "; did you mean optim={'weight_decay': ...}?"),
        ("batch_size", "; did you mean batch?"),
        ("iint", "; did you mean init?"),
        ("num_classes", ""),
    ],
)
def test_a_wrong_keyword_is_told_the_closest_one(keyword: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        name_fields(PretrainConfig, {keyword: 1}, others=("data", "init"))

    assert str(error.value) == f"unknown keyword {keyword!r}{hint}"
