"""Compare two recipes or runs field by field, with the source of each value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.kinds import config_type
from mae.config.run import FitConfig
from mae.config.serialize import field_types, from_dict
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, Recipe, find_recipe
from mae.recipes.folder import CHOSEN, NAME
from mae.report.tables import WIDTH, wrapped
from mae.runs.directory import RunDir, read_record

_DERIVED = {"peak lr": "optim.lr * batch / 256"}
"""Derived values, with their formulas."""


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
    identical: bool
    differences: tuple[Difference, ...]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table; the sources stand in brackets below the values."""
        if self.identical:
            yield (f"{self.a} and {self.b} are identical",)
            return
        field_width = max(len(difference.field) for difference in self.differences)
        widths = (field_width, *[(WIDTH - field_width - 4) // 2] * 2)
        yield from wrapped(("", self.a, self.b), widths)
        for name, a, a_source, b, b_source in self.differences:
            yield from wrapped((name, _text(a), _text(b)), widths)
            yield from wrapped(("", f"({a_source})", f"({b_source})"), widths)


def recipe_diff(a: str, b: str) -> Comparison:
    """Compare two recipes or runs: their fields, and values derived from the fields.

    Args:
        a: name of a recipe, or folder of a run.
        b: the same.

    Raises:
        ConfigError: for an unknown name, or for pre-training compared with fine-tuning.
    """
    one, two = _recipe_or_run(a), _recipe_or_run(b)
    if one.kind != two.kind:
        raise ConfigError(
            f"recipes diff: {one.name} is for {one.kind} and {two.name} for {two.kind}, "
            "expected two of one type; see mae recipes list"
        )
    others, differences = _values(two.config), list[Difference]()
    for path, value in _values(one.config).items():
        if not _same(value, others[path]):
            sources = [_DERIVED.get(path) or side.source_of(path) for side in (one, two)]
            differences.append(Difference(path, value, sources[0], others[path], sources[1]))
    return Comparison(one.name, two.name, not differences, tuple(differences))


def _recipe_or_run(name: str) -> Recipe:
    """Find a recipe, or read a run as one; unchanged values keep the source of their recipe."""
    known = {recipe.name: recipe for recipe in RECIPES}
    record = None if name in known else read_record(Path(name))
    if record is None:
        if name not in known and Path(name).exists():
            raise ConfigError(f"{name}: holds no run.json; name the folder of a run")
        return find_recipe(name)
    cls = config_type(record["config"])
    config: Any = from_dict(cls, record["config"], where=str(RunDir(Path(name)).record))
    base = known.get(record.get("recipe", ""))
    theirs = _values(base.config) if base else {}
    sources = {
        path: f"{base.name}: {base.source_of(path)}"
        if base and _same(value, theirs[path])
        else "chosen for its images, or set in this run"
        if base and base.name == NAME and path in CHOSEN
        else "set in this run"
        for path, value in _values(config).items()
    }
    return Recipe(name=name, about="", source="", expected="", config=config, sources=sources)


def _values(config: FitConfig) -> dict[str, Any]:
    """Return every value by the dotted name of its field, and the derived ones."""
    paths = field_types(type(config))
    values = {path: reduce(getattr, path.split("."), config) for path in paths}
    return values | {"peak lr": config.optim.peak_lr(config.batch)}


def _same(a: object, b: object) -> bool:
    """Compare values; floats may differ by a rounding error."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _text(value: object) -> str:
    """Format a value as the command line accepts it."""
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "none" if value is None else str(value)
