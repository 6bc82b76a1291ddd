"""List recipes, write them as TOML, read them back, and override single fields."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import from_dict, to_dict
from mae.config.sizes import size_fields
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, Recipe, find_config

_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin")
_LENGTHS = ("epochs", "steps", "minutes")


def recipe_rows() -> list[dict[str, str]]:
    """List the recipes: type, name, description, source of the numbers, published result."""
    names = ("sort", "name", "about", "source", "expected")
    return [{name: str(getattr(r, name)) for name in names} for r in RECIPES]


def recipe_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that `--config` reads."""
    facts = (recipe.about, f"source: {recipe.source}", f"expected: {recipe.expected}")
    elsewhere = (f"source of {path}: {source}" for path, source in recipe.sources.items())
    head = "".join(f"# {line}\n" for line in (*facts, *elsewhere, recipe.command))
    return f"{head}\n{to_toml(to_dict(recipe.config))}"


ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig)


def configured(
    recipe: str,
    sort: type[ConfigT],
    *,
    file: Path | None = None,
    fields: Mapping[str, object],
) -> ConfigT:
    """Build a configuration: the recipe, overridden by a file, then by single fields.

    Args:
        recipe: name of the recipe.
        sort: required type of its configuration.
        file: TOML or JSON of the same fields, all or a few; or the run.json of a run.
        fields: values by dotted name; a length (epochs, steps, minutes) replaces any other
            length, and `model`, a name as in "vit-b/16", replaces the fields it determines.

    Raises:
        ConfigError: for an unknown recipe, key or value.
    """
    if not any(known.name == recipe for known in RECIPES) and (meant := _meant(recipe, sort)):
        raise ConfigError(f"recipe: there is no {recipe!r}; did you mean {meant}?")
    base = find_config(recipe, sort)
    if file is not None:
        merged = _merged(to_dict(base), read_fields(file))
        base = from_dict(sort, merged, where=str(file))
    nested: dict[str, Any] = {}
    if set(_LENGTHS) & set(fields):
        nested = {"steps": None, "minutes": None}
    single = dict(fields)
    if (size := single.pop("model", None)) is not None:
        if single.get("follow_weights", base.follow_weights):
            raise ConfigError(
                "model: has no effect with follow_weights, which takes the network from the "
                "weights; use --resize for another size, or --follow-weights no"
            )
        nested["model"] = size_fields(str(size))
    for name, value in single.items():
        group, _, last = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[last] = value
    return from_dict(sort, _merged(to_dict(base), nested), where="the options")


def _meant(name: str, sort: type[PretrainConfig] | type[FinetuneConfig]) -> str | None:
    """Guess the option meant by a word in place of a recipe; None if there is no guess."""
    path, option = Path(name).expanduser(), None
    with suppress(ConfigError):
        size_fields(name)
        return f"--model {name}"
    if name.startswith("hf:") or path.suffix in _WEIGHTS or (path / "run.json").exists():
        option = "init" if sort is PretrainConfig else "weights"
    elif path.suffix in (".toml", ".json"):
        option = "config"
    elif name == "fashion-mnist" or path.exists() or "/" in name:
        option = "data"
    return option and f"--{option} {shlex.quote(name)}"


def read_fields(file: Path) -> dict[str, Any]:
    """Read fields from TOML, where the text "none" stands for None, or from JSON.

    Raises:
        ConfigError: if the file cannot be read or is neither.
    """
    try:
        text = file.read_text(encoding="utf-8")
        toml = file.suffix.lower() == ".toml"
        values: Any = _with_none(tomllib.loads(text)) if toml else json.loads(text)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ConfigError(f"config: {file.absolute()}: {reason}; check the path") from error
    except ValueError as error:
        sort = "TOML" if toml else "JSON (files of TOML end in .toml)"
        raise ConfigError(f"config: {file}: is not {sort}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config: {file}: expected named values, got {type(values).__name__}")
    of_a_run = values.get("config")
    return of_a_run if isinstance(of_a_run, dict) else values


def to_toml(values: Mapping[str, Any], *, table: str = "") -> str:
    """Write nested values as TOML; it has no null, so None is written as the text "none"."""
    lines = [f"[{table}]"] if table else []
    nested = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in values.items() if name not in nested}
    # JSON of strings, numbers, booleans and lists of them is valid TOML, too.
    lines += [f"{n} = {json.dumps('none' if v is None else v)}" for n, v in plain.items()]
    dotted = f"{table}." if table else ""
    tables = [to_toml(value, table=f"{dotted}{name}") for name, value in nested.items()]
    return "\n".join(["\n".join(lines) + "\n", *tables])


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(base[name], value)
        for name, value in changes.items()
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
    }
    return {**base, **changes, **both}


def _with_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_none(inner) for name, inner in value.items()}
    return None if value == "none" else value
