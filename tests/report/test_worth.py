from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mae.evaluation.comparison import Comparison, Start, scores
from mae.evaluation.starts import correct_of, nested_draws
from mae.report.tables import plain
from mae.report.worth import worth_page, worth_rows, worth_sentence

NAMES = ("cat", "dog", "eel")


def compared(
    baselines: Sequence[Start], starts: Sequence[Start], *, labels: tuple[float, ...] = (12, 24, 48)
) -> Comparison:
    bars, judged = scores(baselines, starts, minutes=20)
    return Comparison(
        data="shapes", baselines=bars, starts=judged, labels=labels, classes=3, images=110,
        train=90, test=200, draws=4, seeds=2, minutes=20, pool="grid", network="ViT",
        supervised="Supervised: so.",
    )  # fmt: skip


def start(name: str, *accuracies: float, passes: float | None = None) -> Start:
    """Give a start that is right on the first images, in all of 4 draws, and 3.0 minutes."""
    right = [np.tile(np.arange(200) < 200 * each, (4, 1)).astype(float) for each in accuracies]
    return Start(name, right, 3.0 if passes else 0.0, passes)


BARS = (start("raw pixels", 0.3, 0.4, 0.5), start("the random encoder", 0.2, 0.3, 0.4))


def test_the_sentence_names_the_start_the_gain_and_the_labels_it_saves() -> None:
    found = compared(BARS, [start("poor", 0.3, 0.3, 0.45), start("good", 0.4, 0.5, 0.8, passes=9)])

    assert found.answer == "helps"
    assert worth_sentence(found).startswith(
        "good helps: it is 30.0 points ahead of raw pixels with 48 labels (95 % interval +"
    )
    assert worth_sentence(found).endswith(
        "), and needs about 24 to be as accurate as raw pixels with all, so it saves about 24"
    )
    head, *rows = worth_rows(found)
    assert [row[0] for row in rows] == ["raw pixels", "the random encoder", "poor", "good"]
    assert rows[3][4:] == ("helps", "24", "3.0") and rows[2][4:] == ("do not bother", "", "")
    assert plain(found.values())["starts"][1]["reached"] == {"labels": 24, "at_most": False}


def test_the_labels_saved_are_a_bound_outside_the_measured_numbers() -> None:
    found = compared(BARS, [start("good", 0.6, 0.7, 0.8)])

    assert worth_sentence(found).endswith("needs at most 12 to be as accurate as raw pixels "
                                          "with all, so it saves at least 36")  # fmt: skip


def test_nothing_gained_is_not_worth_the_bother() -> None:
    found = compared(BARS, [start("poor", 0.3, 0.3, 0.45), start("worse", 0.3, 0.3, 0.41)])

    assert worth_sentence(found).startswith(
        "Do not bother: the best start, poor, is 5.0 points behind raw pixels with 48 labels"
    )


def test_what_trained_for_less_than_a_pass_is_not_called_useless() -> None:
    found = compared(BARS, [start("poor", 0.3, 0.3, 0.45, passes=0.4)])

    assert found.answer == "cannot tell"
    assert worth_sentence(found).endswith(
        "its minutes held 0.4 passes over its images, expected at least 1; give --minutes 50 or "
        "more"
    )


def test_a_training_that_was_cut_short_is_not_called_useless() -> None:
    cut = start("supervised", 0.1, passes=15)._replace(least_passes=75)

    [found] = compared(BARS, [cut]).starts

    assert found.verdict is not None and found.verdict.answer == "cannot tell"
    assert found.missing.startswith(
        "its minutes held 15 passes over its images, expected at least 75"
    )
    assert found.missing.endswith("--minutes 100 or more")


def test_what_trained_for_less_than_a_pass_and_helps_helps() -> None:
    assert compared(BARS, [start("good", 0.6, 0.7, 0.8, passes=0.4)]).answer == "helps"


def test_an_open_verdict_says_what_would_settle_it() -> None:
    found = compared(BARS, [start("even", 0.3, 0.4, 0.51)])

    assert worth_sentence(found).startswith("Cannot tell: even is 1.0 points ahead")
    assert found.starts[0].missing in worth_sentence(found)
    assert "settle" in found.starts[0].missing


def test_the_page_shows_every_start_and_escapes_names() -> None:
    page = worth_page(compared(BARS, [start("<b>", 0.6, 0.7, 0.8, passes=2)])).decode()

    assert "&lt;b&gt; helps" in page and "<b>" not in page
    assert page.count("<tr>") == 4 and "<svg" in page and "http" not in page


@pytest.mark.parametrize("labelled", ["truly", "at random"])
def test_features_that_know_the_classes_help_unless_the_labels_are_shuffled(labelled: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 3
    asked = np.arange(90) % 3
    centres = {name: size * rng.normal(size=(3, 7)) for name, size in
               (("raw", 0.4), ("random", 0.2), ("pre-trained", 1.2))}  # fmt: skip
    draws = [np.flatnonzero(np.arange(72) // 3 % 3 == part) for part in range(3)]
    seen = labels if labelled == "truly" else rng.permutation(labels)
    [size] = nested_draws(draws, labels, names=NAMES, seed=0)[-1:]

    starts = []
    for name, centre in centres.items():
        train, test = (
            (centre[y] + rng.normal(size=(len(y), 7))).astype(np.float32) for y in (labels, asked)
        )
        right = correct_of([train], seen, [test], asked, draws=size)
        starts.append(Start(name, [right]))

    found = compared(starts[:2], starts[2:], labels=(size.labels,))
    assert (found.answer == "helps") == (labelled == "truly")
