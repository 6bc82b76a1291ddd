"""A model scored on test images, by the run that trained it or afterwards, as verbs return it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from xml.etree.ElementTree import Element

from numpy.typing import NDArray

from mae.report.notebook import run_html
from mae.report.tables import plain, value_rows
from mae.runs.directory import RunDir
from mae.runs.log import final_values, read_columns


class Scores(Protocol):
    """Scores on test images."""

    def values(self) -> dict[str, object]:
        """Return the scores for JSON: numbers, and tables."""


ConfigT = TypeVar("ConfigT")
ScoresT = TypeVar("ScoresT", bound=Scores)
ModelT = TypeVar("ModelT")


class ScoredRun(NamedTuple, Generic[ConfigT, ScoresT, ModelT]):
    """A finished run and its scores; it stands for its path wherever weights are taken."""

    path: Path
    config: ConfigT
    num_steps: int
    resumed: bool
    train: int
    """Number of training images."""
    test: int
    """Number of test images, each scored once."""
    scores: ScoresT
    model: ModelT

    def values(self) -> dict[str, object]:
        """Return the values to print."""
        return self.scores.values() | self._facts()

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: scores, classes, files."""
        yield from self.score_rows()
        yield from value_rows(plain(self._facts()))

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        raise NotImplementedError

    def _facts(self) -> dict[str, object]:
        files = RunDir(self.path)
        counts = {"train": self.train, "test": self.test, "steps": self.num_steps}
        paths = {"run": self.path, "weights": files.weights, "report": files.report}
        return {**counts, "resumed": self.resumed, **paths}

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> dict[str, NDArray[Any]]:
        """The log as columns, see `read_columns`."""
        return read_columns(RunDir(self.path).log)

    @property
    def metrics(self) -> dict[str, float]:
        """The test scores, and the last value of each column of the log, times summed up."""
        scores = self.scores.values().items()
        return final_values(self.log) | {n: v for n, v in scores if isinstance(v, float)}

    def html(self) -> Iterator[Element]:
        """Yield the scores and facts of the run."""
        return run_html(self.path, self.rows())


class ScoredData(NamedTuple, Generic[ScoresT]):
    """Scores on annotated images."""

    data: str
    part: str
    """Which part of the data was scored: a split, what training held out, or all images."""
    images: int
    """Scored, each once."""
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    scores: ScoresT
    written: tuple[str, ...]

    def values(self) -> dict[str, object]:
        """Return the values to print with --json."""
        names = ("data", "part", "images", "unreadable", "written")
        return self.scores.values() | {name: getattr(self, name) for name in names}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: scores, classes, facts."""
        yield from self.score_rows()
        facts = {"images": self.images, "part": self.part, "unreadable": list(self.unreadable)}
        yield from value_rows(facts | {"written": list(self.written)})

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        raise NotImplementedError
