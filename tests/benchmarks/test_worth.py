"""The table of `mae worth` against the truth counts the clear pairs alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.worth import _pairs, table

from mae.evaluation.comparison import Comparison, Start, scores
from mae.jobs.worth import Worth


def right(accuracy: float, *, draws: int, first: int = 0) -> np.ndarray:
    found = (np.arange(400) - first) % 400 < 400 * accuracy
    return np.tile(found, (draws, 1)).astype(float)


def test_pairs_within_two_standard_errors_do_not_count() -> None:
    few = {"raw pixels": 0.4, "random": 0.3, "a": 0.5, "b": 0.6}
    bars, starts = scores(*([Start(n, [right(few[n], draws=3)]) for n in names] for names in
                            (("raw pixels", "random"), ("a", "b"))), minutes=1)  # fmt: skip
    found = Comparison(
        data="x", baselines=bars, starts=starts, labels=(30.0,), classes=3, images=90, train=90,
        test=400, draws=3, seeds=1, minutes=1, pool="grid", network="", supervised="",
    )  # fmt: skip
    worth = Worth(found, Path("x"), Path("x.html"))
    # With all labels b is behind a, clearly; raw pixels and random differ on two images alone.
    truth = {
        "raw pixels": right(0.5, draws=1), "random": right(0.505, draws=1),
        "a": right(0.8, draws=1), "b": right(0.6, draws=1),
    }  # fmt: skip

    pairs = list(_pairs(worth, truth))
    accuracies = {name: float(each.mean()) for name, each in truth.items()}
    values = {"few": worth, "pairs": pairs, "all_labels": accuracies, "shuffled": [False, True]}

    text = table({"x": values})
    assert "4 of 5 pairs" in text and "(6 pairs in all)" in text
    assert "x: some start helps in 1 of 2." in text
    assert "| b | 60.0 ± 0.0 | helps | 60.0 |" in text
