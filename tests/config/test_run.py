"""Configurations there and back, and refusals that say which key and what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mae.config.objective import ObjectiveConfig
from mae.config.run import FinetuneConfig, ModelConfig, OptimConfig, PretrainConfig
from mae.config.serialize import coerce_text, did_you_mean, field_types, from_dict, to_dict
from mae.config.sizes import model_config
from mae.errors import ConfigError


def test_configuration_survives_plain_values() -> None:
    config = PretrainConfig(
        steps=7,
        optim=OptimConfig(betas=(0.8, 0.9), clip_norm=2.0),
        model=model_config("vit-ti/4", image_size=(12, 20), channels=2),
        objective=ObjectiveConfig(mask_ratio=0.6),
    )

    assert from_dict(PretrainConfig, to_dict(config), where="run.json") == config
    assert to_dict(config)["model"]["image_size"] == [12, 20]


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("model.mask_ratio", 0.6, "objective.mask_ratio"),
        ("model.normalize_target", False, "objective.normalize_target"),
        ("model.target_eps", 1e-3, "objective.target_eps"),
    ],
)
def test_fields_of_version_0_1_are_read_by_their_names_now(
    old: str, value: object, new: str
) -> None:
    (group, name), path = old.split("."), new.split(".")

    config = from_dict(
        PretrainConfig, {group: {name: value, "width": 24, "num_heads": 3}}, where=""
    )
    tuned = from_dict(FinetuneConfig, {"num_classes": 3, "model": {"mask_ratio": 0.5}}, where="")

    assert getattr(getattr(config, path[0]), path[1]) == value
    assert tuned == FinetuneConfig(num_classes=3)  # fine-tuning has no objective


def test_muon_of_version_0_1_is_the_name_of_the_optimizer() -> None:
    for value, name in ((True, "muon"), (False, "adamw")):
        assert from_dict(FinetuneConfig, {"optim": {"muon": value}}, where="").optim.name == name
    with pytest.raises(ConfigError, match="optim.name: expected adamw or muon or lars, got 'yes'"):
        from_dict(PretrainConfig, {"optim": {"muon": "yes"}}, where="")


def test_fields_left_out_keep_their_defaults() -> None:
    config = from_dict(PretrainConfig, {"optim": {"lr": 1}}, where="x")

    assert config == PretrainConfig(optim=OptimConfig(lr=1.0))
    assert type(config.optim.lr) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 1}}, "unknown key 'optim.lrr' in my.toml; did you mean 'optim.lr'?"),
        ({"lr": 1}, "unknown key 'lr' in my.toml; did you mean 'optim.lr'?"),
        ({"modell": {}}, "unknown key 'modell' in my.toml; did you mean 'model'?"),
        ({"zzz": 1}, "unknown key 'zzz' in my.toml"),
        ({"epochs": "abc"}, "epochs: expected a number, got 'abc'"),
        ({"epochs": True}, "epochs: expected a number, got True"),
        ({"epochs": float("inf")}, "epochs: expected a number, got inf"),
        ({"batch": 1.5}, "batch: expected a whole number, got 1.5"),
        ({"batch": None}, "batch: expected a whole number, got None"),
        ({"steps": "abc"}, "steps: expected a whole number, got 'abc'"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"optim": {"betas": [0.9]}}, "optim.betas: expected 2 numbers, got [0.9]"),
        ({"optim": {"betas": [0.9, "a"]}}, "optim.betas: expected a number, got 'a'"),
        ({"optim": 3}, "optim: expected named values, got 3"),
        ({"precision": "fp8"}, "precision: expected auto or float32 or bf16 or fp16, got 'fp8'"),
        ({"device": 3}, "device: expected text, got 3"),
        ({"measure_pixels": 1}, "measure_pixels: expected true or false, got 1"),
        ({"micro_batch": "all"}, "micro_batch: expected a whole number or auto, got 'all'"),
        ({"keep": 1}, "keep: expected at least 2, got 1"),
        ({"model": {"crop_pct": 0}}, "crop_pct: expected above 0, at most 1, got 0.0"),
        ({"model": {"crop_pct": 1.1}}, "crop_pct: expected above 0, at most 1, got 1.1"),
    ],
)
def test_what_cannot_be_used_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(PretrainConfig, values, where="my.toml")

    assert str(caught.value) == message


@dataclass(frozen=True)
class Needy:
    size: int


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="missing key 'size' in x"):
        from_dict(Needy, {}, where="x")


def test_values_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"x: expected named values, got \[\]"):
        from_dict(ModelConfig, [], where="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "0.5", 0.5),
        ("epochs", "3", 3.0),
        ("steps", "12", 12),
        ("steps", "none", None),
        ("workers", "auto", None),
        ("micro_batch", "auto", "auto"),
        ("micro_batch", "64", 64),
        ("micro_batch", "none", None),
        ("model.image_size", "224x160", (224, 160)),
        ("model.image_size", "224 160", (224, 160)),
        ("optim.betas", "0.9, 0.95", (0.9, 0.95)),
        ("model.pixels.mean", ".5 .4 .3", (0.5, 0.4, 0.3)),
        ("optim.decay_tokens", "no", False),
        ("precision", "bf16", "bf16"),
        ("device", "cuda:1", "cuda:1"),
        ("optim.clip_norm", "None", None),
    ],
)
def test_option_text_becomes_the_type_of_its_field(name: str, text: str, value: object) -> None:
    assert coerce_text(field_types(PretrainConfig)[name], text, name=name) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("batch", "abc", "batch: expected a whole number, got 'abc'"),
        ("batch", "1e3", "batch: expected a whole number, got '1e3'"),
        ("epochs", "nan", "epochs: expected a number, got 'nan'"),
        ("steps", "many", "steps: expected a whole number or none, got 'many'"),
        ("micro_batch", "1.5", "micro_batch: expected a whole number or auto or none, got '1.5'"),
        ("model.image_size", "224", "model.image_size: expected 2 numbers, got '224'"),
        ("model.pixels.mean", "a", "model.pixels.mean: expected numbers, got 'a'"),
        ("optim.decay_tokens", "maybe", "optim.decay_tokens: expected true or false, got 'maybe'"),
        ("precision", "fp8", "precision: expected auto or float32 or bf16 or fp16, got 'fp8'"),
    ],
)
def test_option_text_that_does_not_fit_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coerce_text(field_types(PretrainConfig)[name], text, name=name)

    assert str(caught.value) == message


def test_field_types_reach_into_nested_configurations() -> None:
    types = field_types(PretrainConfig)

    assert types["model.pixels.dtype"] == field_types(ModelConfig)["pixels.dtype"]
    assert "model" not in types


def test_suggestion_only_where_something_is_near() -> None:
    assert did_you_mean("pretrian", ["pretrain", "probe"]) == "; did you mean 'pretrain'?"
    assert did_you_mean("qqqq", ["pretrain", "probe"]) == ""
