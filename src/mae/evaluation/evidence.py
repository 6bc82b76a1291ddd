"""Compare trained features with raw pixels and an untrained encoder by simple probes.

Every row is evaluated in the same way: features standardised on the training part, k-NN, logistic
regression on all labels and on a few labels per class. Raw pixels and the untrained encoder are
the baselines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mae.data.types import Log
from mae.evaluation.features import (
    Array,
    LabelledImages,
    encoder_features,
    pixel_features,
    standardized,
)
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
    """Std over the draws of labels; 0 for one."""
    behind: bool = False
    """Whether raw pixels have a higher accuracy."""

    def __str__(self) -> str:
        spread = f" ± {100 * self.spread:.1f}" if self.spread else ""
        return f"{100 * self.mean:.1f}{spread}" + f" {BEHIND}" * self.behind


class Row(NamedTuple):
    """One type of features and its score by each probe."""

    name: str
    scores: tuple[Score, ...]


class EvidenceTable(NamedTuple):
    """Raw pixels first, then pools of the untrained and of the trained encoder, grid first."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    about: str

    def to_dict(self) -> dict[str, object]:
        """Return the contents of results.json."""
        rows = [{"name": r.name, "scores": [s._asdict() for s in r.scores]} for r in self.rows]
        return {"about": self.about, "columns": list(self.columns), "rows": rows}

    def headline(self) -> tuple[Row, Row, Row]:
        """Return the rows of raw pixels, the untrained and the trained encoder, pooled by grid."""
        return self.rows[0], self.rows[1], self.rows[1 + len(POOLS)]


def evidence_table(
    trained: Encoder,
    *,
    train: LabelledImages,
    test: LabelledImages,
    init_seed: int,
    log: Log = lambda text: None,
) -> EvidenceTable:
    """Compare an encoder with raw pixels and with the same encoder before training.

    Args:
        trained: the trained encoder.
        train: labelled images; at least 250 per class.
        test: images not used for training or model selection.
        init_seed: seed of the untrained encoder; that of the run gives its initial weights.
        log: called with the name of each row before it is computed.

    Raises:
        DataError: if a class has too few labels.
    """
    choices = [
        [labels_per_class(train.labels, n, seed=0, draw=d) for d in range(DRAWS)]
        for n in FEW_LABELS
    ]
    rows: list[Row] = []
    for name, train_x, test_x in _candidates(trained, train, test, init_seed=init_seed, log=log):
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
        f"accuracy in % on {len(test.labels):,} test images; features standardised on the "
        f"{len(train.labels):,} training images; few labels: mean ± std of {DRAWS} draws",
    )


def _candidates(
    trained: Encoder, train: LabelledImages, test: LabelledImages, *, init_seed: int, log: Log
) -> Iterator[tuple[str, Array, Array]]:
    log("raw pixels")
    yield "raw pixels", pixel_features(train.batches()), pixel_features(test.batches())
    untrained = create(trained.config, seed=init_seed).encoder.to(trained.cls_token.device)
    encoders = {f"random encoder (seed {init_seed})": untrained, "trained encoder": trained}
    for name, encoder in encoders.items():
        log(name)
        known, asked = (encoder_features(encoder, p.batches(), pools=POOLS) for p in (train, test))
        for pool in POOLS:
            log(f"{name}, {pool}")
            yield f"{name}, {pool}", known[pool], asked[pool]


def score(accuracies: Sequence[float], bar: Score | None = None) -> Score:
    """Return mean and std of the accuracies of the draws, compared with raw pixels if given."""
    mean = float(np.mean(accuracies))
    spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return Score(mean, spread, bar is not None and mean < bar.mean)


def shortfalls(table: EvidenceTable) -> tuple[str, ...]:
    """List where the trained encoder, pooled by grid, is not ahead of a baseline, a line each.

    It must be ahead of the untrained encoder in every column, and of raw pixels in the logistic
    probe on all labels.
    """
    pixels, untrained, trained = table.headline()
    lines = []
    for i, column in enumerate(table.columns):
        own = trained.scores[i].mean
        for bar in (untrained, pixels) if i == ALL_LABELS else (untrained,):
            if own <= (other := bar.scores[i].mean):
                baseline = f"{bar.name} {100 * other:.1f}"
                lines.append(f"{column}: {trained.name} {100 * own:.1f}, not ahead of {baseline}")
    return tuple(lines)
