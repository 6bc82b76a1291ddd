"""Reproducible few-label subsets: options, seeded choice, .csv export and import."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.atomic import write_atomic
from mae.config.model import refuse_without_effect
from mae.data.sources.source import Source
from mae.data.types import Log
from mae.errors import ConfigError, DataError
from mae.evaluation.split import Ids, Labels, fraction_of_labels, labels_per_class
from mae.parallel.processes import SINGLE_PROCESS, Communicator

CHOICE = ".csv"
"""File extension of a saved choice."""
COLUMNS = ("draw", "name", "class")

_FRACTION = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_PER_CLASS = re.compile(r"(\d+)\s*/\s*class")


def choose_labels(
    labels: Labels, text: str, *, seed: int, draw: int = 0, names: Sequence[str] = ()
) -> Ids:
    """Choose few images of each class, as a pure function of (labels, seed, draw).

    Args:
        labels: n classes.
        text: a fraction of each class as in "1%", or a number as in "10/class".
        seed: seed of the choice.
        draw: number of the draw; different draws are independent.
        names: class names for messages.

    Returns:
        Positions in `labels`, ascending.

    Raises:
        ConfigError: for any other text, 0 labels or more than 100%.
        DataError: if a class has fewer labels than requested.
    """
    if (found := _FRACTION.fullmatch(text.strip())) and 0 < float(found[1]) <= 100:
        return fraction_of_labels(labels, float(found[1]) / 100, seed=seed, draw=draw)
    if (found := _PER_CLASS.fullmatch(text.strip())) and int(found[1]):
        return labels_per_class(labels, int(found[1]), seed=seed, draw=draw, names=names)
    raise ConfigError(
        f"labels: got {text!r}, expected a fraction up to 100% as in 1%, 10/class, or a .csv"
    )


class FewLabels(NamedTuple):
    """Options of learning from few labels, in several draws."""

    labels: str | None = None
    """Text for `choose_labels`, or a .csv written by `write_choice`; none: all labels."""
    labels_out: Path | None = None
    """.csv file for the choice."""
    runs: int | None = None
    """Number of draws, none: one; must be none for a .csv, which holds its own."""

    def draws(
        self,
        source: Source,
        among: Ids,
        *,
        seed: int,
        log: Log,
        ranks: Communicator = SINGLE_PROCESS,
    ) -> list[Ids]:
        """Choose the training images of each run, and write them to `labels_out` if given.

        Args:
            source: labelled images.
            among: ids of the training images.
            seed: seed of the choice.
            log: called with a line on the choice.
            ranks: the processes that choose the same; rank 0 writes.

        Returns:
            Ids of each draw, ascending.

        Raises:
            ConfigError: for a setting without effect, or less than one run.
        """
        text, runs = self.labels, self.runs
        if runs is not None and runs < 1:
            raise ConfigError(f"seeds: expected at least 1, got {runs}")
        if text is None:
            refuse_without_effect("all labels", "--labels", labels_out=self.labels_out)
            return [among] * (runs or 1)
        if text.endswith(CHOICE):
            if runs is not None:
                raise ConfigError(f"seeds: has no effect, {text} holds its draws; drop it")
            draws, key = read_choice(Path(text).expanduser(), source, among=among), ""
        else:
            assert source.labels is not None
            known, names = source.labels[among], source.class_names
            draws = [
                among[choose_labels(known, text, seed=seed, draw=draw, names=names)]
                for draw in range(runs or 1)
            ]
            key = f", seed {seed}"
        if self.labels_out is not None and ranks.is_main_process:
            write_choice(self.labels_out, source, draws)
        several = f", {len(draws)} draws" if len(draws) > 1 else ""
        log(f"labels {text}: {len(draws[0]):,} of {len(among):,} images{key}{several}")
        return draws

    def single_draw(self, source: Source, among: Ids, *, seed: int, log: Log) -> Ids:
        """Choose the training images of one run, see `draws`.

        Raises:
            ConfigError: also for a .csv of several draws.
        """
        draws = self.draws(source, among, seed=seed, log=log)
        if len(draws) > 1:
            raise ConfigError(f"labels: {self.labels} holds {len(draws)} draws, expected one")
        return draws[0]


ALL = FewLabels()


def percent(mean: float, std: float, *, runs: int) -> str:
    """Format a fraction in percent, with its std where there are several runs."""
    return f"{mean:.1%} ± {100 * std:.1f}" if runs > 1 else f"{mean:.1%}"


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
    assert source.labels is not None
    draws: dict[int, list[int]] = {}
    numbers = {source.name(i): i for i in range(len(source))}
    allowed = set(among.tolist())
    for line, (draw, name, class_name) in enumerate(_rows(path), start=2):
        name = re.sub(r"^picture (?=\d+$)", "image ", name)  # name in an array before 0.2
        where = f"labels: {path}, line {line}: {name}"
        if name not in numbers:
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
        raise DataError(f"labels: {path} names no image")
    for draw, ids in draws.items():
        for missing in sorted({*range(len(source.class_names))} - {*source.labels[ids].tolist()}):
            name = source.class_names[missing]
            raise DataError(f"labels: {path} names no image of class {name} in draw {draw}")
    return [np.unique(np.array(draws[draw], dtype=np.int64)) for draw in sorted(draws)]


def _rows(path: Path) -> list[tuple[int, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            return [(int(row["draw"]), row["name"], row["class"]) for row in rows]
    except OSError as error:
        raise DataError(f"labels: {path}: {error.strerror}; check the path") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"labels: {path}: expected the columns {','.join(COLUMNS)}") from error
