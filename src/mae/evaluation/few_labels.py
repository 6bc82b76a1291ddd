"""Reproducible few-label subsets: seeded choice, .csv export and import."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.atomic import write_atomic
from mae.data.sources.source import Source
from mae.errors import ConfigError, DataError
from mae.evaluation.split import labels_per_class, share_of_labels

Ids = NDArray[np.int64]
CHOICE = ".csv"
"""File extension of a saved choice."""
COLUMNS = ("draw", "name", "class")

_SHARE = re.compile(r"(?P<percent>\d+(\.\d+)?)\s*%")
_COUNT = re.compile(r"(?P<count>\d+)\s*/\s*class")


class FewLabels(NamedTuple):
    """Number of labels to use: one of the two fields."""

    share: float | None = None
    """Fraction of each class, above 0 and at most 1; at least one image of each."""
    per_class: int | None = None


def parse_few(text: str) -> FewLabels:
    """Parse "1%" or "10/class".

    Raises:
        ConfigError: for any other text, 0 labels or more than 100%.
    """
    if found := _SHARE.fullmatch(text.strip()):
        share = float(found["percent"]) / 100
        if 0 < share <= 1:
            return FewLabels(share=share)
    if (found := _COUNT.fullmatch(text.strip())) and int(found["count"]):
        return FewLabels(per_class=int(found["count"]))
    raise ConfigError(
        f"labels: got {text!r}, expected a share up to 100% as in 1%, a number as in 10/class, "
        "or the .csv of an earlier choice"
    )


def choose_labels(
    labels: Ids, spec: str | FewLabels, *, seed: int, draw: int = 0, names: Sequence[str] = ()
) -> Ids:
    """Choose few images of each class, as a pure function of (labels, seed, draw).

    Args:
        labels: n classes.
        spec: text for `parse_few`, or its result.
        seed: seed of the choice.
        draw: number of the draw; different draws are independent.
        names: class names for messages.

    Returns:
        Positions in `labels`, ascending.

    Raises:
        ConfigError: for a text that `parse_few` rejects.
        DataError: if a class has fewer labels than requested.
    """
    few = parse_few(spec) if isinstance(spec, str) else spec
    if few.share is not None:
        return share_of_labels(labels, few.share, seed=seed, draw=draw)
    assert few.per_class is not None
    return labels_per_class(labels, few.per_class, seed=seed, draw=draw, names=names)


def label_draws(source: Source, text: str, *, among: Ids, seed: int, runs: int | None) -> list[Ids]:
    """Choose few labels for several runs, or read an earlier choice.

    Args:
        source: labelled images.
        text: text for `parse_few`, or a .csv written by `write_choice`.
        among: ids of the training images.
        seed: seed of the choice.
        runs: number of draws, none: one; must be none for a .csv, which holds its own.

    Returns:
        Ids of each draw, ascending.
    """
    if text.endswith(CHOICE):
        if runs is not None:
            raise ConfigError(f"seeds: has no effect, {text} holds its draws; drop it")
        return read_choice(Path(text).expanduser(), source, among=among)
    assert source.labels is not None
    labels, names = source.labels[among], source.class_names
    draws = range(1 if runs is None else runs)
    return [among[choose_labels(labels, text, seed=seed, draw=d, names=names)] for d in draws]


def write_choice(path: Path, source: Source, draws: Sequence[Ids]) -> None:
    """Write a .csv of the images chosen in each draw, by name and class.

    Raises:
        ConfigError: for another file extension, or a file that cannot be written.
    """
    if path.suffix != CHOICE:
        raise ConfigError(f"labels_out: {path} ends in {path.suffix!r}, expected {CHOICE}")
    assert source.labels is not None
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    for draw, ids in enumerate(draws):
        for i in ids.tolist():
            rows.writerow((draw, source.name(i), source.class_names[source.labels[i]]))
    write_atomic(path, file.getvalue().encode())


def read_choice(path: Path, source: Source, *, among: Ids) -> list[Ids]:
    """Read a saved choice as ids of a source.

    Args:
        path: file of `write_choice`, or any .csv with its columns.
        source: labelled images.
        among: ids of the training images; all others are for testing.

    Returns:
        The ids of each draw, ascending.

    Raises:
        DataError: for a missing or damaged file, or an image that is missing, of another class,
            or for testing.
    """
    draws: dict[int, list[int]] = {}
    numbers = {source.name(i): i for i in range(len(source))}
    allowed = set(among.tolist())
    for line, (draw, name, class_name) in enumerate(_rows(path), start=2):
        name = re.sub(r"^picture (?=\d+$)", "image ", name)  # name in an array before 0.2
        where = f"labels: {path}, line {line}: {name}"
        if name not in numbers or source.labels is None:
            raise DataError(f"{where} is not in the data; give the data of the choice")
        own = source.class_names[source.labels[numbers[name]]]
        if own != class_name:
            raise DataError(f"{where} is of class {class_name}, in the data of {own}")
        if numbers[name] not in allowed:
            raise DataError(
                f"{where} is held out for testing; use the seed of the choice, or give train/ and "
                "val/ folders"
            )
        draws.setdefault(draw, []).append(numbers[name])
    if not draws:
        raise DataError(f"labels: {path} names no picture")
    for draw, ids in draws.items():
        assert source.labels is not None
        for missing in sorted({*range(len(source.class_names))} - {*source.labels[ids].tolist()}):
            name = source.class_names[missing]
            raise DataError(f"labels: {path} names no picture of class {name} in draw {draw}")
    return [np.unique(np.array(draws[draw], dtype=np.int64)) for draw in sorted(draws)]


def _rows(path: Path) -> list[tuple[int, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            return [(int(row["draw"]), row["name"], row["class"]) for row in rows]
    except OSError as error:
        raise DataError(f"labels: {path}: {error.strerror}; check the path") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"labels: {path} is no choice of labels, expected the columns {','.join(COLUMNS)}"
        ) from error
