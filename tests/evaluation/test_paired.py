from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mae.evaluation.paired import (
    Difference,
    difference,
    holm_levels,
    labels_to_reach,
    t_quantile,
    two_sided_p,
    verdicts,
)

R, N, CLASSES = 5, 70, 3


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 371])
def test_students_t_is_that_of_scipy(df: int) -> None:
    for t in (0.0, 0.3, 2.0, 7.5):
        assert two_sided_p(t, df=df) == pytest.approx(2 * stats.t.sf(t, df), abs=1e-12)
    for alpha in (0.5, 0.05, 0.05 / 6):
        assert t_quantile(alpha, df=df) == pytest.approx(stats.t.isf(alpha / 2, df), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_without_an_effect_of_the_images_it_is_the_paired_t_test(
    rng: np.random.Generator, alpha: float
) -> None:
    start, other = (np.repeat(rng.uniform(0.3, 0.8, (R, 1)), N, axis=1) for _ in range(2))

    found = difference(start, other)

    test = stats.ttest_rel(start.mean(axis=1), other.mean(axis=1))
    expected = test.confidence_interval(1 - alpha)
    assert found.df == R - 1
    assert found.interval(alpha) == pytest.approx((found.mean, *expected))
    assert two_sided_p(found.mean / found.std_error(), df=found.df) == pytest.approx(test.pvalue)


def test_one_draw_is_the_paired_t_test_over_the_images(rng: np.random.Generator) -> None:
    start, other = (rng.integers(0, 2, (1, N)).astype(float) for _ in range(2))

    found = difference(start, other).interval()

    expected = stats.ttest_rel(start[0], other[0]).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_draws_that_agree_on_few_images_leave_the_doubt_of_the_images() -> None:
    # 12 of 20 images right against 11 of 20, in each of 5 draws: a t test over the draws alone
    # would be certain of 5 points.
    start, other = (np.tile(np.arange(20) < right, (5, 1)).astype(float) for right in (12, 11))

    found = difference(start, other).interval()

    assert found.mean == pytest.approx(0.05)
    assert found.low < 0 < found.high


def test_two_starts_that_agree_on_four_images_are_not_proven_equal() -> None:
    same = np.ones((R, 4))

    [found] = verdicts({"start": same}, {"bar": same}).values()

    assert found.answer == "cannot tell"


def test_the_standard_error_is_the_std_of_repeated_experiments(rng: np.random.Generator) -> None:
    def experiment() -> Difference:
        a, b, e = (rng.normal(0, std, shape) for std, shape in (
            (0.02, (R, 1)), (0.3, (1, N)), (0.4, (R, N)),
        ))  # fmt: skip
        return difference(0.03 + a + b + e, np.zeros((R, N)))

    found = [experiment() for _ in range(400)]

    true = np.sqrt(0.02**2 / R + 0.3**2 / N + 0.4**2 / (R * N))
    assert np.std([each.mean for each in found]) == pytest.approx(true, rel=0.12)
    assert np.mean([each.std_error() for each in found]) == pytest.approx(true, rel=0.06)
    covered = [each.interval().low < 0.03 < each.interval().high for each in found]
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize(
    "p_values, levels",
    [
        # By hand. All are significant:
        ((0.01, 0.04, 0.02), (0.05 / 3, 0.05, 0.025)),
        # 0.03 > 0.05 / 2 stops the procedure, so 0.04 < 0.05 is not significant either:
        ((0.04, 0.03, 0.01), (0.025, 0.025, 0.05 / 3)),
        # The first is not significant:
        ((0.02, 0.5, 0.9), (0.05 / 3, 0.05 / 3, 0.05 / 3)),
        ((0.04,), (0.05,)),
    ],
)
def test_holm(p_values: tuple[float, ...], levels: tuple[float, ...]) -> None:
    assert holm_levels(p_values) == pytest.approx(levels)


def constant(accuracy: float, rng: np.random.Generator, *, images: int = 400) -> NDArray:
    return (rng.uniform(size=(R, images)) < accuracy).astype(float)


@pytest.mark.parametrize(
    "accuracy, answer",
    [(0.72, "helps"), (0.45, "do not bother"), (0.615, "cannot tell")],
)
def test_the_verdict(rng: np.random.Generator, accuracy: float, answer: str) -> None:
    bars = {"raw pixels": constant(0.6, rng), "random": constant(0.5, rng)}

    [(_, found)] = verdicts({"start": constant(accuracy, rng)}, bars).items()

    assert found.answer == answer
    assert found.gain == found.gains["raw pixels"]
    assert (found.needed is None) == (answer != "cannot tell")


def test_a_start_that_beats_one_baseline_alone_does_not_help(rng: np.random.Generator) -> None:
    bars = {"raw pixels": constant(0.3, rng), "random": constant(0.7, rng)}

    assert verdicts({"start": constant(0.6, rng)}, bars)["start"].answer == "do not bother"


def test_a_certain_gain_below_one_point_is_not_worth_the_bother() -> None:
    bar = np.tile(np.arange(1000) < 600, (R, 1)).astype(float)
    start = np.tile(np.arange(1000) < 602, (R, 1)).astype(float)

    assert verdicts({"start": start}, {"bar": bar})["start"].answer == "do not bother"


def test_what_would_settle_it_settles_it(rng: np.random.Generator) -> None:
    def effects(draws: int) -> NDArray:
        return 0.04 + np.linspace(-0.07, 0.07, draws)[:, None] + np.zeros((1, 300))

    start = effects(4)
    found = verdicts({"start": start}, {"bar": np.zeros_like(start)})["start"]

    assert found.answer == "cannot tell" and found.needed is not None
    assert found.needed.images is None  # no number of images helps against the draws
    few, enough = (
        difference(effects(draws), np.zeros((draws, 300)))._replace(
            of_draws=difference(start, np.zeros_like(start)).of_draws
        )
        for draws in (found.needed.draws - 1, found.needed.draws)
    )
    assert few.interval().low < 0 < enough.interval().low


def predicted(x: NDArray, y: NDArray, asked: NDArray) -> NDArray:
    """Classify by ridge regression on one-hot labels."""
    weight = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ np.eye(CLASSES)[y])
    return (asked @ weight).argmax(axis=1)


def correct(features: NDArray, labels: NDArray, *, images: int, seed: int) -> NDArray:
    """Learn from half of the training rows, in R draws, and test on the first `images` rows."""
    pool = np.arange(images, len(labels))
    rows = []
    for draw in range(R):
        few = np.random.default_rng((seed, draw)).choice(pool, len(pool) // 2, replace=False)
        found = predicted(features[few], labels[few], features[:images])
        rows.append(found == labels[:images])
    return np.array(rows, dtype=float)


@pytest.mark.slow
def test_shuffled_labels_help_in_at_most_one_of_twenty(rng: np.random.Generator) -> None:
    helps = []
    for seed in range(20):
        labels = rng.permutation(np.arange(150) % CLASSES)
        test = partial(correct, labels=labels, images=50, seed=seed)
        features = [rng.normal(size=(150, width)) for width in (5, 9, 9, 14, 20, 30)]
        pixels, random, *starts = map(test, features)
        found = verdicts(
            {str(i): start for i, start in enumerate(starts)},
            {"pixels": pixels, "random": random},
        )
        helps.append(any(each.answer == "helps" for each in found.values()))

    assert sum(helps) <= 1


def test_features_that_separate_the_classes_help(rng: np.random.Generator) -> None:
    labels = np.arange(150) % CLASSES
    test = partial(correct, labels=labels, images=60, seed=0)
    weak, strong = (
        np.eye(CLASSES)[labels] * scale + rng.normal(size=(150, CLASSES)) for scale in (0.8, 2.5)
    )

    found = verdicts(
        {"better": test(strong), "the same": test(weak)},
        {"pixels": test(weak), "random": test(rng.normal(size=(150, 8)))},
    )

    assert found["better"].answer == "helps"
    assert found["the same"].answer != "helps"


def test_the_labels_that_reach_an_accuracy_are_interpolated_on_a_log_scale() -> None:
    reached = partial(labels_to_reach, labels=(25, 50, 100), accuracies=(0.5, 0.6, 0.7))

    assert reached(0.65) == pytest.approx((np.sqrt(50 * 100), False))
    assert reached(0.6) == (50, False)
    assert reached(0.45) == (25, True)
    assert reached(0.71) is None
