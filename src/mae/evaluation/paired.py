"""Paired comparison of starts with few labels: intervals, Holm's correction, verdicts.

A start is whatever gives features or a classifier: raw pixels, an encoder, a trained network. All
starts are tested on the same images after learning from the same draws of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.float64]
"""R n: for each draw of labels and each test image, the fraction of the seeds that classify it
correctly."""
Answer = Literal["helps", "do not bother", "cannot tell"]

ALPHA = 0.05
POINT = 0.01
"""The least gain of interest: one point of accuracy."""
MOST_DRAWS, MOST_TIMES = 100, 20
"""More draws than this, or times more test images, are not proposed."""


class Interval(NamedTuple):
    """A mean difference of accuracies and its confidence interval, as fractions."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean difference of two starts and the sources of its variance.

    The difference of draw r and test image i is mean + a_r + b_i + e_ri, with independent random
    effects of draws and of images. Their variances are estimated by mean squares. Without an effect
    of the images, the interval is that of the paired t test over the means of the draws.
    """

    mean: float
    draws: int
    images: int
    of_draws: float
    """Variance of a_r: how far one draw of labels differs from another."""
    of_images: float
    """Variance of b_i: how far the starts differ from one test image to another, in all draws."""
    of_rest: float
    """Variance of e_ri."""

    def std_error(self, *, draws: int | None = None, images: int | None = None) -> float:
        """Return the standard error of the mean, or that of other numbers of draws or images.

        It is at least one test image: few images on which two starts agree prove little.
        """
        R, n = draws or self.draws, images or self.images
        found = math.sqrt(self.of_draws / R + self.of_images / n + self.of_rest / (R * n))
        return max(found, 1 / n)

    @property
    def df(self) -> int:
        """Degrees of freedom, by Satterthwaite; at least those of a t test over the draws."""
        R, n = self.draws, self.images
        rest = self.of_rest / (R * n)
        by_draws, by_images = self.of_draws / R + rest, self.of_images / n + rest
        spread = by_draws**2 / max(1, R - 1) * (R > 1) + by_images**2 / max(1, n - 1)
        found = math.floor(self.std_error() ** 4 / spread) if spread else 1
        return max(1, R - 1, min(found, R * n - 1))

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Return the interval of level 1 - alpha by Student's t."""
        half = t_quantile(alpha, df=self.df) * self.std_error()
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_value(self) -> float:
        """Return twice the one-sided p-value of a gain, at most 1: small for gains alone."""
        if self.mean <= 0:
            return 1.0
        return two_sided_p(self.mean / self.std_error(), df=self.df)


def difference(start: Correct, other: Correct) -> Difference:
    """Compare two starts on the same draws and test images.

    Args:
        start: R n, see `Correct`; at least 2 test images. The difference is this minus the other.
        other: R n.
    """
    found = start - other
    R, n = found.shape
    mean = float(found.mean())
    if R == 1:
        return Difference(mean, 1, n, 0.0, float(found.var(ddof=1)), 0.0)
    by_draw, by_image = found.mean(axis=1, keepdims=True), found.mean(axis=0, keepdims=True)
    rest = found - by_draw - by_image + mean
    of_rest = float(np.square(rest).sum()) / ((R - 1) * (n - 1))
    of_draws = max(0.0, float(by_draw.var(ddof=1)) - of_rest / n)
    of_images = max(0.0, float(by_image.var(ddof=1)) - of_rest / R)
    return Difference(mean, R, n, of_draws, of_images, of_rest)


def two_sided_p(t: float, *, df: int) -> float:
    """Return the probability that |T| exceeds |t| for Student's t with whole df.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    return 1.0 - _inside(math.atan(abs(t) / math.sqrt(df)), df=df)


def t_quantile(alpha: float, *, df: int) -> float:
    """Return the t that |T| exceeds with probability alpha, by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, df=df) < 1 - alpha else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _inside(angle: float, *, df: int) -> float:
    """Return the probability of |T| < sqrt(df) tan(angle)."""
    odd, square = df % 2, math.cos(angle) ** 2
    term = total = (math.cos(angle) if df > 1 else 0.0) if odd else 1.0
    for k in range(1 + odd, df - 2, 2):
        term *= k / (k + 1) * square
        total += term
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside


def holm_levels(p_values: Sequence[float], *, alpha: float = ALPHA) -> list[float]:
    """Return the level of each test in Holm's step-down procedure.

    The smallest of k p-values is tested at alpha / k, the next at alpha / (k - 1) and so on; from
    the first that is not significant, the level stays. So p <= level exactly where Holm rejects,
    and an interval of this level excludes 0 exactly there.
    """
    levels, order = [alpha] * len(p_values), sorted(range(len(p_values)), key=p_values.__getitem__)
    level, rejects = alpha, True
    for rank, place in enumerate(order):
        if rejects:
            level = alpha / (len(order) - rank)
            rejects = p_values[place] <= level
        levels[place] = level
    return levels


class Needed(NamedTuple):
    """What would settle an open comparison, if as much again were like what was measured."""

    draws: int | None
    """Draws of labels in all; None: more than `MOST_DRAWS`."""
    images: int | None
    """Test images in all; None: more than `MOST_TIMES` as many."""


class Verdict(NamedTuple):
    """Whether a start is better than the baselines."""

    answer: Answer
    gains: dict[str, Interval]
    """Over each baseline."""
    needed: Needed | None = None
    """Where the answer is "cannot tell"."""

    @property
    def gain(self) -> Interval:
        """The gain over the better baseline."""
        return min(self.gains.values())


def verdicts(
    starts: Mapping[str, Correct], baselines: Mapping[str, Correct], *, alpha: float = ALPHA
) -> dict[str, Verdict]:
    """Judge every start against all baselines; Holm's procedure corrects for several starts.

    "helps": over each baseline, the gain is above one point and its interval above 0. "do not
    bother": over a baseline, the interval is below one point. Else "cannot tell".
    """
    found = {
        name: {other: difference(own, bar) for other, bar in baselines.items()}
        for name, own in starts.items()
    }
    # A start must beat all baselines, so its p-value is the largest.
    p_values = [max(each.p_value() for each in gains.values()) for gains in found.values()]
    levels = holm_levels(p_values, alpha=alpha)
    return {
        name: _verdict(gains, level)
        for (name, gains), level in zip(found.items(), levels, strict=True)
    }


def _verdict(gains: Mapping[str, Difference], level: float) -> Verdict:
    intervals = {name: each.interval(level) for name, each in gains.items()}
    if all(each.low > 0 and each.mean > POINT for each in intervals.values()):
        return Verdict("helps", intervals)
    if any(each.high < POINT for each in intervals.values()):
        return Verdict("do not bother", intervals)
    weakest = min(gains.values(), key=lambda each: each.mean)
    if weakest.mean > POINT:
        needs = [_needed(each, each.mean, level) for each in gains.values()]
    else:
        needs = [_needed(weakest, POINT - weakest.mean, level)]
    most = Needed(*(None if None in part else max(part) for part in zip(*needs, strict=True)))
    return Verdict("cannot tell", intervals, most)


def _needed(found: Difference, margin: float, level: float) -> Needed:
    """Return how many draws, or test images, make half the interval shorter than a margin."""

    def settles(**counts: int) -> bool:
        more = found._replace(**counts)
        return t_quantile(level, df=more.df) * more.std_error() < margin

    draws = range(found.draws, MOST_DRAWS + 1)
    most, images = MOST_TIMES * found.images, found.images
    while images <= most and not settles(images=images):
        images = math.ceil(1.1 * images)
    return Needed(
        next((count for count in draws if settles(draws=count)), None),
        images if images <= most else None,
    )


class Reached(NamedTuple):
    """The number of labels with which a start reaches an accuracy."""

    labels: float
    at_most: bool
    """Whether the smallest measured number is enough, so that fewer may be."""


def labels_to_reach(
    accuracy: float, *, labels: Sequence[float], accuracies: Sequence[float]
) -> Reached | None:
    """Interpolate the number of labels that gives an accuracy, on a logarithmic scale.

    Args:
        accuracy: the accuracy to reach.
        labels: numbers of labels, ascending.
        accuracies: of the start with each of these numbers.

    Returns:
        None where no measured number reaches it.
    """
    at = next((i for i, own in enumerate(accuracies) if own >= accuracy), None)
    if at is None:
        return None
    if at == 0:
        return Reached(labels[0], at_most=True)
    part = (accuracy - accuracies[at - 1]) / (accuracies[at] - accuracies[at - 1])
    return Reached(labels[at - 1] * (labels[at] / labels[at - 1]) ** part, at_most=False)
