"""Strict conversion of configurations from and to JSON, TOML and option text."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mae.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

RENAMED = {
    "model.mask_ratio": "objective.mask_ratio",
    "model.normalize_target": "objective.normalize_target",
    "model.target_eps": "objective.target_eps",
    "optim.muon": "optim.name",
}
"""Fields of version 0.1 by their dotted names, and their names now."""

FORMER_SWITCHES = {"optim.muon": ("adamw", "muon")}
"""Values now of renamed fields that were false or true."""


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the fields of an older version; drop the objective where nothing is pre-trained.

    Args:
        values: nested fields of a run, or of a description of weights, as read from JSON or TOML.
    """
    current = {n: dict(v) if isinstance(v, Mapping) else v for n, v in values.items()}
    for old, new in RENAMED.items():
        (group, name), (new_group, new_name) = old.split("."), new.split(".")
        if isinstance(current.get(group), dict) and name in current[group]:
            value = current[group].pop(name)
            if old in FORMER_SWITCHES and isinstance(value, bool):
                value = FORMER_SWITCHES[old][value]
            current.setdefault(new_group, {})[new_name] = value
    if {"num_classes", "class_names"} & current.keys():
        current.pop("objective", None)
    return current


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Convert a configuration to JSON values: nested dicts, lists, numbers, strings."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[ConfigT], values: Mapping[str, object], *, where: str) -> ConfigT:
    """Build a configuration from plain nested values, strictly: the inverse of `to_dict`.

    Args:
        cls: the configuration's class; fields missing in `values` keep their defaults.
        values: nested mappings of field names to plain values.
        where: origin of the values, for messages.

    Raises:
        ConfigError: for an unknown or missing key, or a value of another type.
    """
    current = with_current_names(values) if isinstance(values, Mapping) else values
    return _build(cls, current, prefix="", known=field_types(cls), where=where)


def field_types(cls: type[DataclassInstance], *, prefix: str = "") -> dict[str, Any]:
    """Return the type of each field by dotted name, including nested configurations."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        inner = _not_none(hint)
        nested = dataclasses.is_dataclass(inner)
        types |= field_types(inner, prefix=f"{prefix}{name}.") if nested else {prefix + name: hint}
    return types


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, or "" where none is near."""
    names, end = list(known), name.rpartition(".")[2]
    ends = [k.rpartition(".")[2] for k in names]
    same_end = [k for k, other in zip(names, ends, strict=True) if other == end]
    starts = [k for k in names if len(k) > 3 and name.startswith(f"{k}_")]
    near = same_end or starts or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def coerce_text(hint: Any, text: str, *, name: str) -> object:
    """Parse the text of an option as the type of a field.

    Several numbers are separated by spaces, commas or an x (224x160); "none" stands for None, as
    does "auto" where a whole number is optional.

    Raises:
        ConfigError: if the text cannot be parsed as that type.
    """
    try:
        return _convert(hint, _parse(hint, text), name=name)
    except ConfigError:
        raise ConfigError(f"{name}: expected {_describe(hint)}, got {text!r}") from None


def _parse(hint: Any, text: str) -> object:
    """Parse text where possible; anything else stays a string, which `_convert` rejects."""
    options = get_args(hint)
    if NoneType in options:
        inner = _not_none(hint)
        nothing = ("none", "auto") if inner is int else ("none",)
        return None if text.lower() in nothing else _parse(inner, text)
    if get_origin(hint) is Union:  # a number or a word, which is left to `_convert`
        return _parse(options[0], text)
    if get_origin(hint) is tuple:
        return [_parse(options[0], part) for part in re.split(r"[\s,x]+", text.strip())]
    if hint is bool:
        return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text)
    if hint in (int, float):
        with suppress(ValueError):
            return hint(text)
    return text


def _build(
    cls: type[ConfigT], values: object, *, prefix: str, known: Iterable[str], where: str
) -> ConfigT:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or where}: expected named values, got {values!r}")
    types = get_type_hints(cls)
    for key in values:
        if key not in types:
            groups = {name.rpartition(".")[0] for name in known} - {""}
            near = did_you_mean(f"{prefix}{key}", [*known, *groups])
            raise ConfigError(f"unknown key {f'{prefix}{key}'!r} in {where}{near}")
    for field_ in dataclasses.fields(cls):
        optional = (field_.default, field_.default_factory) != (dataclasses.MISSING,) * 2
        if field_.name not in values and not optional:
            raise ConfigError(f"missing key {f'{prefix}{field_.name}'!r} in {where}")
    built: dict[str, Any] = {}
    for key, value in values.items():
        hint, name = types[key], f"{prefix}{key}"
        inner = _not_none(hint)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner) and value is not None:
            built[key] = _build(inner, value, prefix=f"{name}.", known=known, where=where)
        else:
            built[key] = _convert(hint, value, name=name)
    return cls(**built)


def _convert(hint: Any, value: object, *, name: str) -> object:
    options = get_args(hint)
    if NoneType in options:
        return None if value is None else _convert(_not_none(hint), value, name=name)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        hints = options[:1] * len(value) if options[-1] is Ellipsis else options
        if len(hints) == len(value):
            return tuple(_convert(h, v, name=name) for h, v in zip(hints, value, strict=True))
    if get_origin(hint) is Union:
        for option in options:
            with suppress(ConfigError):
                return _convert(option, value, name=name)
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
    elif type(value) is hint or (get_origin(hint) is Literal and value in options):
        return value
    elif get_origin(hint) is dict and isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"{name}: expected {_describe(hint)}, got {value!r}")


def _not_none(hint: Any) -> Any:
    options = get_args(hint)
    if NoneType not in options:
        return hint
    return Union[tuple(option for option in options if option is not NoneType)]  # noqa: UP007


def _describe(hint: Any) -> str:
    options = get_args(hint)
    if NoneType in options:
        return f"{_describe(_not_none(hint))} or none"
    if get_origin(hint) is tuple:
        return "numbers" if options[-1] is Ellipsis else f"{len(options)} numbers"
    if get_origin(hint) is Union:
        return " or ".join(map(_describe, options))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, options))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "named values")
