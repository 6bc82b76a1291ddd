"""Configurations from a recipe, a file of fields and single options; TOML in and out."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from mae.config.detect import DetectConfig
from mae.config.kinds import ConfigT
from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.config.serialize import RENAMED, did_you_mean, field_types, from_dict, to_dict
from mae.config.sizes import size_fields
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, find_config
from mae.recipes.detecting import NAME as DETECT_NAME
from mae.recipes.folder import NAME as FOLDER_NAME
from mae.recipes.folder import fitting_patch
from mae.recipes.folder_tuning import NAME as TUNING_NAME
from mae.recipes.recipe import Recipe
from mae.recipes.segmenting import NAME as SEGMENT_NAME

_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin")
_LENGTHS = ("epochs", "steps", "minutes")

# Fields that are changed most often have a short name, as an option and as a keyword.
_SHORT = {"optim.lr": "lr", "model.image_size": "image_size", "objective.mask_ratio": "mask_ratio",
          "objective.mask_kind": "mask_kind", "model.crop_pct": "crop_pct"}  # fmt: skip
# Fields determined by the images; --channels and --measure-pixels control how.
_DERIVED = ("model.channels", "model.pixels.", "num_classes")
_SIZES = ("image_size", "resize", "start_size")


def field_names(cls: type[FitConfig]) -> dict[str, str]:
    """Return the name of each field that a user may set, as an option or a keyword, by its path.

    An option has dashes in place of the underscores.
    """
    paths = (path for path in field_types(cls) if not path.startswith(_DERIVED))
    return {path: _SHORT.get(path, path) for path in paths}


def name_fields(
    cls: type[FitConfig], keywords: Mapping[str, Any], *, others: Iterable[str] = ()
) -> dict[str, Any]:
    """Resolve the keywords of a call in Python to the dotted names of fields.

    Args:
        cls: type of the configuration.
        keywords: values by the name of an option (`lr`, `image_size`, `optim.weight_decay`); a
            group of fields (`optim`, `model`) as a mapping or a configuration. One number stands
            for height and width.
        others: other keywords of the call, to suggest.

    Raises:
        ConfigError: for an unknown keyword, with the closest one.
    """
    paths = {name: path for path, name in field_names(cls).items()}
    groups = {path.partition(".")[0] for path in paths.values() if "." in path}
    known = paths | {path: path for path in (*paths.values(), *groups, *RENAMED)}
    fields: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in known:
            near = did_you_mean(name, [*known, *others]).replace("'", "")
            group, _, field = near.removesuffix("?").rpartition(" ")[2].rpartition(".")
            if group:
                near = f"; did you mean {group}={{'{field}': ...}}?"
            raise ConfigError(f"unknown keyword {name!r}{near}")
        if is_dataclass(value) and not isinstance(value, type):
            value = to_dict(value)
        if isinstance(value, int) and name.endswith(_SIZES):
            value = (value, value)
        fields[known[name]] = value
    return fields


def kept_fields(
    recipe: object, fields: Mapping[str, Any], *, file: Path | None = None
) -> frozenset[str] | None:
    """Return the dotted names of the fields that the user set, which a recipe does not choose.

    Args:
        recipe: name of a recipe, or a configuration.
        fields: values by name, as in `name_fields`; `model` may be the name of a size.
        file: as in `build_config`.

    Returns:
        None for any recipe but `folder`, `finetune-folder`, `segment-folder` and
        `detect-folder`: nothing is chosen.
    """
    chosen: dict[str, type[FitConfig]] = {
        FOLDER_NAME: PretrainConfig,
        TUNING_NAME: FinetuneConfig,
        SEGMENT_NAME: SegmentConfig,
        DETECT_NAME: DetectConfig,
    }
    if (cls := chosen.get(str(recipe))) is None:
        return None
    given = name_fields(cls, fields)
    if isinstance(size := given.get("model"), str):
        given["model"] = size_fields(size)
    return frozenset((*_paths({} if file is None else read_fields(file)), *_paths(given)))


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield RENAMED.get(f"{prefix}{name}", f"{prefix}{name}")


def build_config(
    recipe: str | ConfigT,
    cls: type[ConfigT],
    *,
    file: Path | None = None,
    fields: Mapping[str, object],
) -> ConfigT:
    """Build a configuration: the recipe, overridden by a file, then by single fields.

    Args:
        recipe: name of the recipe, or a configuration.
        cls: required type of its configuration.
        file: TOML or JSON of the same fields, all or a few; or the run.json of a run.
        fields: values by dotted name; a length (epochs, steps, minutes) replaces any other
            length, and `model`, a name as in "vit-b/16", replaces the fields it determines. A
            group of fields may be a mapping.

    Raises:
        ConfigError: for an unknown recipe, key or value.
    """
    if not isinstance(recipe, str) and file is None and not fields:
        return recipe
    base = _find(recipe, cls) if isinstance(recipe, str) else recipe
    if file is not None:
        base = from_dict(cls, _merged(to_dict(base), read_fields(file)), where=str(file))
    nested: dict[str, Any] = dict.fromkeys(("steps", "minutes")) if {*_LENGTHS} & {*fields} else {}
    single = dict(fields)
    if (size := single.get("model")) is None or isinstance(size, str):
        single.pop("model", None)
    if isinstance(size, str):
        if single.get("follow_weights", base.follow_weights):
            raise ConfigError(
                "model: has no effect with follow_weights, which takes the network from the "
                "weights; use --resize for another size, or --follow-weights no"
            )
        nested["model"] = size_fields(size)
    for name, value in single.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        nested = _merged(nested, value)  # type: ignore[arg-type]
    model = nested.get("model")
    if recipe == FOLDER_NAME and isinstance(model, Mapping) and "patch_size" not in model:
        nested["model"] = {**model, **fitting_patch(base.model, model.get("image_size"))}
    return from_dict(cls, _merged(to_dict(base), nested), where="the options")


def _find(recipe: str, cls: type[ConfigT]) -> ConfigT:
    if all(known.name != recipe for known in RECIPES) and (option := _guess_option(recipe, cls)):
        raise ConfigError(f"recipe: there is no {recipe!r}; did you mean {option}?")
    return find_config(recipe, cls)


def _guess_option(word: str, cls: type) -> str | None:
    """Guess the option meant by a word in place of a recipe; None if there is no guess."""
    path, option = Path(word).expanduser(), None
    with suppress(ConfigError):
        size_fields(word)
        return f"--model {word}"
    if word.startswith("hf:") or path.suffix in _WEIGHTS or (path / "run.json").exists():
        option = "init" if cls is PretrainConfig else "weights"
    elif path.suffix in (".toml", ".json"):
        option = "config"
    elif word == "fashion-mnist" or path.exists() or "/" in word:
        option = "data"
    return option and f"--{option} {shlex.quote(word)}"


def read_fields(file: Path) -> dict[str, Any]:
    """Read fields from TOML, where the text "none" stands for None, or from JSON.

    Raises:
        ConfigError: if the file cannot be read or is neither.
    """
    toml = file.suffix.lower() == ".toml"
    try:
        text = file.read_text(encoding="utf-8")
        values: Any = _with_none(tomllib.loads(text)) if toml else json.loads(text)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ConfigError(f"config: {file.absolute()}: {reason}; check the path") from error
    except ValueError as error:
        kind = "TOML" if toml else "JSON (files of TOML end in .toml)"
        raise ConfigError(f"config: {file}: is not {kind}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config: {file}: expected named values, got {type(values).__name__}")
    config = values.get("config")
    return config if isinstance(config, dict) else values


def recipe_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that `--config` reads."""
    facts = (recipe.about, f"source: {recipe.source}", f"expected: {recipe.expected}")
    elsewhere = (f"source of {path}: {source}" for path, source in recipe.sources.items())
    head = "".join(f"# {line}\n" for line in (*facts, *elsewhere, recipe.command))
    return f"{head}\n{to_toml(to_dict(recipe.config))}"


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
