"""Multinomial logistic regression on features that are computed once.

A quick stand-in for the published linear probe: convex, so there is no schedule to tune, and
one strength of regularisation to choose, on a held-out part of the training rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluate.split import held_out

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Tried from strong to weak, each fit starting from the one before."""
VALIDATION_SHARE = 0.2
MAX_ITERATIONS = 300


class Logistic(NamedTuple):
    """A fitted logistic regression."""

    weight: Tensor
    """F K."""
    bias: Tensor
    """K."""

    def scores(self, features: Tensor) -> Tensor:
        """Give class scores: n F to n K."""
        return torch.addmm(self.bias, features, self.weight)


class LinearProbe(NamedTuple):
    """What a probe predicts, and the strength it chose."""

    predicted: NDArray[np.int64]
    """m classes."""
    l2: float


def fit_logistic(
    features: Tensor, labels: Tensor, *, num_classes: int, l2: float, start: Logistic | None = None
) -> Logistic:
    """Minimise mean cross-entropy + l2/2 times the squared weights (not the biases), by L-BFGS.

    Args:
        features: n F, standardised, float32 or float64, which is kept.
        labels: n classes, from 0.
        num_classes: K.
        l2: above 0; 1 / (C n) in scikit-learn's terms.
        start: weights to start from; zeros without.
    """
    if start is None:
        start = Logistic(
            features.new_zeros(features.shape[1], num_classes), features.new_zeros(num_classes)
        )
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(torch.addmm(bias, features, weight), labels)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Logistic(weight.detach(), bias.detach())


def choose_l2(features: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> float:
    """Choose the strength of least cross-entropy on a fifth of the rows, fitted on the others."""
    held = torch.from_numpy(held_out(labels.numpy(), VALIDATION_SHARE, seed=seed))
    model, losses = None, []
    for l2 in STRENGTHS:
        model = fit_logistic(
            features[~held], labels[~held], num_classes=num_classes, l2=l2, start=model
        )
        losses.append(float(F.cross_entropy(model.scores(features[held]), labels[held])))
    return STRENGTHS[int(np.argmin(losses))]


def linear_probe(
    train_x: NDArray[np.float32],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.float32],
    *,
    seed: int = 0,
) -> LinearProbe:
    """Choose the strength inside the training rows, refit on all of them, predict the test rows.

    Args:
        train_x: n F, standardised.
        train_y: n classes, from 0.
        test_x: m F, standardised by the training part.
        seed: key of the held-out part.
    """
    features, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    num_classes = int(labels.max()) + 1
    l2 = choose_l2(features, labels, num_classes=num_classes, seed=seed)
    model = fit_logistic(features, labels, num_classes=num_classes, l2=l2)
    return LinearProbe(model.scores(torch.from_numpy(test_x)).argmax(dim=1).numpy(), l2)


def logistic_accuracy(
    train_x: NDArray[np.float32],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.float32],
    test_y: NDArray[np.int64],
    *,
    seed: int = 0,
) -> float:
    """Share of the test rows that `linear_probe` gets right, 0 to 1."""
    return float((linear_probe(train_x, train_y, test_x, seed=seed).predicted == test_y).mean())
