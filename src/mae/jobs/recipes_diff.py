"""Compare two recipes or runs field by field, with the source of each value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.config.serialize import field_types, from_dict
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, Recipe, find_recipe
from mae.report.tables import WIDTH, wrapped
from mae.runs.directory import RunDir, read_record


class Difference(NamedTuple):
    """A field whose value differs, with both values and their sources."""

    field: str
    a: object
    a_source: str
    b: object
    b_source: str


class Comparison(NamedTuple):
    """Two recipes or runs and their differences."""

    a: str
    b: str
    differences: tuple[Difference, ...]

    def values(self) -> dict[str, Any]:
        """Return all differences for --json."""
        rows = [difference._asdict() for difference in self.differences]
        return {"a": self.a, "b": self.b, "identical": not rows, "differences": rows}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table; the sources stand in brackets below the values."""
        if not self.differences:
            yield (f"{self.a} and {self.b} are identical",)
            return
        field_width = max(len(difference.field) for difference in self.differences)
        widths = (field_width, *[(WIDTH - field_width - 4) // 2] * 2)
        yield from wrapped(("", self.a, self.b), widths)
        for name, a, a_source, b, b_source in self.differences:
            yield from wrapped((name, _text(a), _text(b)), widths)
            yield from wrapped(("", f"({a_source})", f"({b_source})"), widths)


class _Side(NamedTuple):
    """One side of a comparison."""

    name: str
    sort: str
    config: FitConfig
    source_of: Callable[[str], str]


def diff(a: str, b: str) -> Comparison:
    """Compare two recipes or runs: their fields, and values derived from the fields.

    Args:
        a: name of a recipe, or folder of a run.
        b: the same.

    Raises:
        ConfigError: for an unknown name, or for pre-training compared with fine-tuning.
    """
    sides = one, two = _side(a), _side(b)
    if type(one.config) is not type(two.config):
        raise ConfigError(
            f"recipes diff: {one.name} is for {one.sort} and {two.name} for {two.sort}, "
            "expected two of one sort; see mae recipes list"
        )
    differences = []
    for path in [*field_types(type(one.config)), *_RESOLVED]:
        values = [_value(side.config, path) for side in sides]
        if not _same(*values):
            sources = [_RESOLVED.get(path) or side.source_of(path) for side in sides]
            differences.append(Difference(path, values[0], sources[0], values[1], sources[1]))
    return Comparison(one.name, two.name, tuple(differences))


_RESOLVED = {"peak lr": "optim.lr * batch / 256"}
"""Derived values, with their formulas."""


def _side(name: str) -> _Side:
    is_recipe = any(recipe.name == name for recipe in RECIPES)
    record = None if is_recipe else read_record(Path(name))
    if record is not None:
        return _run_side(name, record)
    if not is_recipe and Path(name).exists():
        raise ConfigError(f"{name}: is not a run, it holds no run.json; name the folder of a run")
    recipe = find_recipe(name)
    return _Side(name, recipe.sort, recipe.config, recipe.source_of)


def _run_side(name: str, record: Mapping[str, Any]) -> _Side:
    """Read a run; values unchanged from its recipe keep the recipe's sources."""
    finetuning = "num_classes" in record["config"]
    where = str(RunDir(Path(name)).record)
    config = from_dict(
        FinetuneConfig if finetuning else PretrainConfig, record["config"], where=where
    )
    base = next((recipe for recipe in RECIPES if recipe.name == record.get("recipe")), None)

    def source_of(path: str) -> str:
        if base is not None and _from_recipe(config, base, path):
            return f"{base.name}: {base.source_of(path)}"
        return "set in this run"

    return _Side(name, "fine-tuning" if finetuning else "pre-training", config, source_of)


def _from_recipe(config: FitConfig, recipe: Recipe, path: str) -> bool:
    alike = type(config) is type(recipe.config)
    return alike and _same(_value(config, path), _value(recipe.config, path))


def _value(config: FitConfig, path: str) -> Any:
    if path == "peak lr":
        return config.optim.peak_lr(config.batch)
    return reduce(getattr, path.split("."), config)


def _same(a: object, b: object) -> bool:
    """Compare values; floats may differ by a rounding error."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _text(value: object) -> str:
    """Format a value as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "none" if value is None else str(value)
