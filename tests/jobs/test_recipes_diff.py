from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.jobs.recipes_diff import Difference, recipe_diff
from mae.recipes.catalogue import find_config
from mae.report.tables import plain


def write_run(path: Path, config: PretrainConfig | FinetuneConfig, *, recipe: str) -> str:
    path.mkdir()
    record = {"recipe": recipe, "config": to_dict(config), "data": {}}
    (path / "run.json").write_text(json.dumps(record))
    return str(path)


def test_a_recipe_is_identical_to_itself() -> None:
    same = recipe_diff("paper-vit-b", "paper-vit-b")

    assert plain(same) == {
        "a": "paper-vit-b",
        "b": "paper-vit-b",
        "identical": True,
        "differences": [],
    }
    assert list(same.rows()) == [("paper-vit-b and paper-vit-b are identical",)]


def test_the_paper_and_its_code_differ_in_these_numbers_alone() -> None:
    differences = recipe_diff("paper-ft-vit-h", "facebook-ft-vit-h").differences

    assert {d.field: (d.a, d.b) for d in differences} == {
        "drop_path": (0.2, 0.3),
        "erase": (0.0, 0.25),
        "optim.min_lr": (0.0, 1e-6),
    }


def test_the_seed_s_rate_is_twice_that_of_the_published_code() -> None:
    differences = recipe_diff(
        "vit-base-p16_ft-8xb128-coslr-100e_in1k", "facebook-ft-vit-b"
    ).differences

    found = {d.field: (d.a, d.b) for d in differences}
    assert found.keys() == {
        "optim.lr",
        "optim.min_lr_scaled",
        "optim.warmup_start",
        "peak lr",
    }
    assert found["peak lr"] == (pytest.approx(4e-3), pytest.approx(2e-3))


def test_each_number_has_its_source() -> None:
    by_field = {d.field: d for d in recipe_diff("paper-ft-vit-b", "facebook-ft-vit-b").differences}

    assert by_field["layer_decay"] == Difference(
        "layer_decay", 0.75, "paper, Table 9", 0.65, "published code, FINETUNE.md"
    )
    assert by_field["erase"].a_source == "not in the paper"
    assert by_field["optim.min_lr"].b_source == "published code, main_finetune.py"


def test_a_peak_that_is_the_same_is_no_difference() -> None:
    fields = [d.field for d in recipe_diff("mmpretrain-vit-b-400e", "paper-vit-b").differences]

    assert fields == ["epochs", "optim.warmup_start", "optim.decay_tokens"]


def test_a_run_differs_where_something_was_set(tmp_path: Path) -> None:
    base = find_config("facebook-ft-vit-b", FinetuneConfig)
    config = dataclasses.replace(base, layer_decay=0.75, workers=3)
    run = write_run(tmp_path / "run", config, recipe="facebook-ft-vit-b")

    differences = recipe_diff(run, "facebook-ft-vit-b").differences

    assert differences == (
        Difference("workers", 3, "set in this run", None, "this project"),
        Difference("layer_decay", 0.75, "set in this run", 0.65, "published code, FINETUNE.md"),
    )


def test_a_number_that_a_run_has_from_its_recipe_keeps_its_source(tmp_path: Path) -> None:
    config = find_config("paper-vit-l", PretrainConfig)
    run = write_run(tmp_path / "run", config, recipe="paper-vit-l")

    (epochs,) = [
        d for d in recipe_diff("paper-ablation-vit-l", run).differences if d.field == "epochs"
    ]

    assert (epochs.a, epochs.a_source) == (800, "paper, Table 1")
    assert (epochs.b, epochs.b_source) == (1600, "paper-vit-l: paper, Table 3")


def test_a_run_as_its_recipe_is_identical(tmp_path: Path) -> None:
    config = find_config("paper-vit-b", PretrainConfig)
    run = write_run(tmp_path / "run", config, recipe="paper-vit-b")

    assert recipe_diff(run, "paper-vit-b").identical


def test_rows_name_both_and_fit_a_terminal() -> None:
    rows = list(recipe_diff("paper-scratch-vit-h", "mmpretrain-ft-vit-h-448").rows())

    assert rows[0][1:] == ("paper-scratch-vit-h", "mmpretrain-ft-vit-h-448")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    assert sum(widths) + 4 <= 100
    assert ("optim.betas", "0.9 0.95", "0.9 0.999") in [
        tuple(cell.strip() for cell in row) for row in rows
    ]


def test_pre_training_and_fine_tuning_are_not_compared() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_diff("paper-vit-b", "paper-ft-vit-b")

    assert str(caught.value) == (
        "recipes diff: paper-vit-b is for pre-training and paper-ft-vit-b for fine-tuning, "
        "expected two of one type; see mae recipes list"
    )


def test_a_name_that_is_neither_recipe_nor_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'paper-vit-x'; did you mean paper-vit-"):
        recipe_diff("paper-vit-b", "paper-vit-x")
    with pytest.raises(ConfigError, match=r"holds no run\.json"):
        recipe_diff(str(tmp_path), "paper-vit-b")
