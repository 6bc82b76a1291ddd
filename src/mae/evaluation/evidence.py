"""The evidence: what a few simple readers get out of the features, beside the same without them.

Every row is read in the same way: standardised on the training part, k-NN, logistic regression on
all of its labels and on a few labels a class. Raw pixels and the untrained encoder set the bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mae.evaluation.features import Array, Pictures, encoder_features, pixel_features, standardized
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import labels_per_class
from mae.model.create import create
from mae.model.encoder import Encoder, Pool

FEW_LABELS = (10, 50, 250)
DRAWS = 3
POOLS: tuple[Pool, ...] = ("grid", "mean", "cls")
BEHIND = "behind raw pixels"
ALL_LABELS = 1  # column of the logistic probe on all labels


class Score(NamedTuple):
    """Accuracy, 0 to 1."""

    mean: float
    spread: float = 0.0
    """Standard deviation over the draws of labels; 0 for one."""
    behind: bool = False
    """Whether raw pixels do better."""

    def __str__(self) -> str:
        spread = f" ± {100 * self.spread:.1f}" if self.spread else ""
        return f"{100 * self.mean:.1f}{spread}" + f" {BEHIND}" * self.behind


class Row(NamedTuple):
    """One kind of features and what each reader gets out of them."""

    name: str
    scores: tuple[Score, ...]


class EvidenceTable(NamedTuple):
    """Raw pixels first, then pools of the untrained and of the trained encoder, grid first."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    about: str

    def to_dict(self) -> dict[str, object]:
        """Give what results.json holds."""
        rows = [{"name": r.name, "scores": [s._asdict() for s in r.scores]} for r in self.rows]
        return {"about": self.about, "columns": list(self.columns), "rows": rows}

    def headline(self) -> tuple[Row, Row, Row]:
        """Give raw pixels, the untrained and the trained encoder, both pooled by grid."""
        return self.rows[0], self.rows[1], self.rows[1 + len(POOLS)]


def evidence_table(
    trained: Encoder,
    *,
    train: Pictures,
    test: Pictures,
    init_seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> EvidenceTable:
    """Compare an encoder with raw pixels and with itself before training.

    Args:
        trained: the encoder in question.
        train: pictures with labels; at least 250 a class.
        test: pictures that nothing was trained or chosen on.
        init_seed: key of the untrained encoder; of the run, to start where it started.
        say: told the name of each row before it is worked on.

    Raises:
        DataError: if a class has too few labels.
    """
    choices = [
        [labels_per_class(train.labels, n, seed=0, draw=d) for d in range(DRAWS)]
        for n in FEW_LABELS
    ]
    rows: list[Row] = []
    for name, train_x, test_x in _candidates(trained, train, test, init_seed=init_seed, say=say):
        train_x, test_x = standardized(train_x, test_x)
        parts = train_x, train.labels, test_x, test.labels
        found = [[knn_accuracy(*parts)], [logistic_accuracy(*parts)]]
        for draws in choices:
            few = [(parts[0][ids], parts[1][ids], *parts[2:]) for ids in draws]
            found.append([logistic_accuracy(*part) for part in few])
        bars = rows[0].scores if rows else (None,) * len(found)
        rows.append(Row(name, tuple(map(score, found, bars))))
    few_names = tuple(f"{n} a class" for n in FEW_LABELS)
    return EvidenceTable(
        ("k-NN", f"logistic, {len(train.labels):,} labels", *few_names),
        tuple(rows),
        f"accuracy in % on {len(test.labels):,} test pictures; features standardised on the "
        f"{len(train.labels):,} training pictures; few labels: mean ± deviation of {DRAWS} draws",
    )


def _candidates(
    trained: Encoder,
    train: Pictures,
    test: Pictures,
    *,
    init_seed: int,
    say: Callable[[str], None],
) -> Iterator[tuple[str, Array, Array]]:
    say("raw pixels")
    yield "raw pixels", pixel_features(train.batches()), pixel_features(test.batches())
    untrained = create(trained.config, seed=init_seed).encoder.to(trained.cls_token.device)
    encoders = {f"random encoder (seed {init_seed})": untrained, "trained encoder": trained}
    for name, encoder in encoders.items():
        say(name)
        known, asked = (encoder_features(encoder, p.batches(), pools=POOLS) for p in (train, test))
        for pool in POOLS:
            say(f"{name}, {pool}")
            yield f"{name}, {pool}", known[pool], asked[pool]


def score(accuracies: Sequence[float], bar: Score | None = None) -> Score:
    """Sum up the accuracies of one or several draws, beside those of raw pixels if given."""
    mean = float(np.mean(accuracies))
    spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return Score(mean, spread, bar is not None and mean < bar.mean)


class Verdict(NamedTuple):
    """Whether the training shows in the table, and where it does not."""

    ahead: bool
    shortfalls: tuple[str, ...]
    """One line for each."""


def ahead_everywhere(table: EvidenceTable) -> Verdict:
    """Judge the trained encoder, pooled by grid.

    It must be ahead of the untrained one in every column, and of raw pixels in the logistic
    probe on all labels.
    """
    pixels, untrained, trained = table.headline()
    lines = []
    for i, column in enumerate(table.columns):
        own = trained.scores[i].mean
        for bar in (untrained, pixels) if i == ALL_LABELS else (untrained,):
            if own <= (other := bar.scores[i].mean):
                lines.append(
                    f"{column}: {trained.name} {100 * own:.1f}, not ahead of {bar.name} "
                    f"{100 * other:.1f}"
                )
    return Verdict(not lines, tuple(lines))
