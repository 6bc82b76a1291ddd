"""Multinomial logistic regression on precomputed features.

A fast alternative to the published linear probe: convex, so without a schedule to tune; the only
hyperparameter is the regularisation strength, chosen on a held-out part of the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.evaluation.features import Array
from mae.evaluation.split import Labels, held_out

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Regularisation strengths, tried in this order."""
VALIDATION_FRACTION = 0.2
MAX_ITERATIONS = 300
TOLERANCE = 1e-4  # of the scaled gradient; a tenth of it changes no accuracy by 0.1 %


class Logistic(NamedTuple):
    """A fitted logistic regression."""

    weight: Tensor
    """K F."""
    bias: Tensor
    """K."""

    def scores(self, features: Tensor) -> Tensor:
        """Return class scores: n F to n K."""
        # For few classes, much faster than features @ weight.T.
        return (self.weight @ features.T).T + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: float,
    start: Logistic | None = None,
    tolerance: float = TOLERANCE,
) -> Logistic:
    """Minimise mean cross-entropy + l2/2 times the squared weights (not the biases), by L-BFGS.

    Args:
        features: n F float32 or float64, the dtype of the result; fastest along principal axes.
        labels: n classes, from 0.
        num_classes: K.
        l2: regularisation strength above 0; equals 1 / (C n) of scikit-learn.
        start: initial weights; zeros without.
        tolerance: largest final gradient, for features scaled to unit curvature.
    """
    if start is None:
        start = Logistic(
            features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
        )
    # A quarter of the mean square bounds the curvature of the loss. Dividing by its root gives
    # all features similar curvature, and L-BFGS needs a third of the steps.
    scale = (features.square().mean(dim=0) / 4 + l2).rsqrt()  # F
    scaled = features * scale
    weight = (start.weight / scale).requires_grad_()
    bias = start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(Logistic(weight, bias).scores(scaled), labels)
        loss = loss + l2 / 2 * (weight * scale).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Logistic((weight * scale).detach(), bias.detach())


def strong_to_weak(
    features: Tensor, labels: Tensor, *, num_classes: int
) -> Iterator[tuple[float, Logistic]]:
    """Fit at every strength, from strong to weak, each fit initialised by the previous one.

    Initialised by zeros, a weakly regularised fit of few rows stops at the first weights that
    separate the rows, which may be far from the smallest such weights.
    """
    model = None
    for l2 in STRENGTHS:
        model = fit_logistic(features, labels, num_classes=num_classes, l2=l2, start=model)
        yield l2, model


def choose_l2(features: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> float:
    """Choose the strength with the least cross-entropy on a held-out fifth of the rows.

    Weaker strengths are tried until the cross-entropy grows.
    """
    held = torch.from_numpy(held_out(labels.numpy(), VALIDATION_FRACTION, seed=seed))
    chosen, least = STRENGTHS[0], math.inf
    for l2, model in strong_to_weak(features[~held], labels[~held], num_classes=num_classes):
        loss = float(F.cross_entropy(model.scores(features[held]), labels[held]))
        if loss > least:
            break
        chosen, least = l2, loss
    return chosen


def linear_probe(
    train_x: Array, train_y: Labels, test_x: Array, *, seed: int = 0
) -> tuple[Labels, float]:
    """Choose the strength inside the training rows, refit on all of them, predict the test rows.

    Args:
        train_x: n F, standardised.
        train_y: n classes, from 0.
        test_x: m F, standardised by the training part.
        seed: seed of the held-out part.

    Returns:
        m predicted classes, and the chosen strength.
    """
    labels, axes = torch.from_numpy(train_y), _principal_axes(torch.from_numpy(train_x))
    features = torch.from_numpy(train_x) @ axes
    num_classes = int(labels.max()) + 1
    chosen = choose_l2(features, labels, num_classes=num_classes, seed=seed)
    fits = strong_to_weak(features, labels, num_classes=num_classes)
    model = next(model for l2, model in fits if l2 == chosen)
    scores = model.scores(torch.from_numpy(test_x) @ axes)
    return scores.argmax(dim=1).numpy(), chosen


def _principal_axes(features: Tensor) -> Tensor:
    """Return the principal axes F A of the rows n F, A = min(n, F).

    A rotation changes neither loss nor penalty, only the speed. Along axes without variance the
    best weight is 0, so few rows need few axes.
    """
    if len(features) < features.shape[1]:  # an n x n problem in the space of the rows, not F x F
        span: Tensor = torch.linalg.qr(features.T).Q  # F n
        return span @ _principal_axes(features @ span)
    axes: Tensor = torch.linalg.eigh(features.T @ features).eigenvectors  # F F
    return axes


def logistic_accuracy(
    train_x: Array, train_y: Labels, test_x: Array, test_y: Labels, *, seed: int = 0
) -> float:
    """Return the accuracy of `linear_probe` on the test rows, 0 to 1."""
    predicted, _ = linear_probe(train_x, train_y, test_x, seed=seed)
    return float((predicted == test_y).mean())
