"""The result of comparing starts on few labels: scores, verdicts, and what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mae.atomic import write_json_atomic
from mae.errors import ConfigError
from mae.evaluation.paired import (
    Answer,
    Correct,
    Needed,
    Reached,
    Verdict,
    labels_to_reach,
    verdicts,
)
from mae.runs.directory import differences
from mae.runs.signals import RunLock

RECORD = "worth.json"


class Start(NamedTuple):
    """A start and what it classified correctly, with each number of labels."""

    name: str
    correct: list[Correct]
    minutes: float = 0.0
    """Spent on training."""
    passes: float | None = None
    """Passes over the images of its training; None where nothing was trained."""
    least_passes: float = 1.0
    """Passes without which it is not called useless."""


class StartScore(NamedTuple):
    """Accuracy of one start, and its verdict."""

    name: str
    curve: tuple[float, ...]
    """Accuracy, 0 to 1, with each number of labels; of all labels alone if it has one value."""
    spread: float
    """Std of the last accuracy over the draws."""
    verdict: Verdict | None = None
    """None for a baseline."""
    minutes: float = 0.0
    """Spent on training."""
    passes: float | None = None
    """Passes over the images of its training; None where nothing was trained."""
    missing: str = ""
    """What the verdict lacks, if it is open."""

    @property
    def accuracy(self) -> float:
        """Accuracy with all labels of a draw."""
        return self.curve[-1]


class Comparison(NamedTuple):
    """All starts, tested on the same images after learning from the same draws of labels."""

    data: str
    baselines: tuple[StartScore, ...]
    starts: tuple[StartScore, ...]
    labels: tuple[float, ...]
    """Numbers of labels, ascending; the last is that of the verdicts."""
    classes: int
    images: int
    """Images on which the starts were trained without labels."""
    train: int
    """Labelled images to draw from."""
    test: int
    draws: int
    seeds: int
    minutes: float
    """Asked for, in all."""
    pool: str
    network: str
    """Network of the random encoder and of the starts from scratch."""
    supervised: str
    """Settings of the supervised start."""

    @property
    def answer(self) -> Answer:
        """The verdict on all starts."""
        found = {start.verdict.answer for start in self.starts if start.verdict is not None}
        if "helps" in found:
            return "helps"
        return "do not bother" if found == {"do not bother"} else "cannot tell"

    @property
    def best(self) -> StartScore:
        """The most accurate start of those with the verdict on all."""
        fit = [s for s in self.starts if s.verdict is not None and s.verdict.answer == self.answer]
        return max(fit, key=lambda start: start.accuracy)

    @property
    def bar(self) -> StartScore:
        """The better baseline."""
        return max(self.baselines, key=lambda each: each.accuracy)

    def reached(self, start: StartScore) -> Reached | None:
        """Return the labels with which a start is as accurate as the better baseline with all."""
        if len(start.curve) != len(self.labels) or len(self.labels) == 1:
            return None
        bar = self.bar.accuracy
        return labels_to_reach(bar, labels=self.labels, accuracies=start.curve)

    def values(self) -> dict[str, Any]:
        """Return the values that --json prints."""
        found = self._asdict() | {"baselines": [_values(each) for each in self.baselines]}
        found["starts"] = [_values(s) | {"reached": self.reached(s)} for s in self.starts]
        return {"answer": self.answer, "best": self.best.name} | found


def _values(start: StartScore) -> dict[str, Any]:
    return {"name": start.name, "accuracy": start.accuracy} | start._asdict()


def scores(
    baselines: Sequence[Start], starts: Sequence[Start], *, minutes: float
) -> list[tuple[StartScore, ...]]:
    """Judge the starts against the baselines.

    Args:
        baselines: what each start must beat.
        starts: all starts, for which Holm's procedure corrects together.
        minutes: asked for in all; named where they were too few.

    Returns:
        Scores of the baselines, and of the starts.
    """
    bars = {each.name: each.correct[-1] for each in baselines}
    found = verdicts({each.name: each.correct[-1] for each in starts}, bars)
    return [
        tuple(map(_score, baselines)),
        tuple(_score(each, found[each.name], minutes=minutes) for each in starts),
    ]


def _score(start: Start, verdict: Verdict | None = None, *, minutes: float = 0) -> StartScore:
    missing = ""
    passes, least = start.passes, start.least_passes
    if verdict is not None and verdict.answer != "helps" and passes is not None and passes < least:
        verdict = verdict._replace(answer="cannot tell", needed=None)
        more = minutes * least / passes
        missing = (
            f"its minutes held {passes:.2g} passes over its images, expected at least {least:.3g}; "
            f"give --minutes {math.ceil(more) if more > 9 else f'{more:.2g}'} or more"
        )
    elif verdict is not None and verdict.needed is not None:
        missing = _what_settles(verdict.needed, *start.correct[-1].shape)
    by_draw = start.correct[-1].mean(axis=1)
    return StartScore(
        start.name,
        tuple(float(each.mean()) for each in start.correct),
        float(by_draw.std(ddof=1)) if len(by_draw) > 1 else 0.0,
        verdict,
        start.minutes,
        start.passes,
        missing,
    )


def _what_settles(needed: Needed, draws: int, images: int) -> str:
    if needed.draws is not None:
        return f"about {needed.draws} draws would settle it (--draws {needed.draws}, now {draws})"
    if needed.images is not None:
        return f"about {needed.images:,} labelled test images would settle it, now {images:,}"
    return f"more labelled images would settle it, to draw from and to test on, now {images:,}"


@contextmanager
def open_comparison(folder: Path, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Lock the folder of a comparison, and start it or resume it.

    Raises:
        ConfigError: for a folder of other files, or of a comparison with other settings.
    """
    file = folder / RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir() if path.name[0] != "."} - {"lock"}
        record = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be used: {error}; choose another --out") from error
    if others and not record:
        raise ConfigError(f"{folder}: holds other files, no {RECORD}; choose another --out")
    if record and (changed := differences(record["asked"], asked)):
        raise ConfigError(
            f"{folder}: holds another comparison: {changed}; ask for the same, or choose another "
            "--out"
        )
    with RunLock(folder / "lock"):
        record = record or {"asked": dict(asked)}
        write_comparison(folder, record)
        yield record


def write_comparison(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a comparison."""
    write_json_atomic(folder / RECORD, record)
