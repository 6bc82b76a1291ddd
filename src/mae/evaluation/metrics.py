"""Classification metrics: accuracy, cross-entropy and confusion from per-image predictions.

Every metric is computed from one row per image, so each image counts once, for any batch size and
number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.sources.source import Source
from mae.errors import WeightsError
from mae.evaluation.split import Ids, Labels


class Predictions(NamedTuple):
    """Predictions for n images."""

    ids: Ids
    """n: ids of the images."""
    labels: Labels
    """n: their classes."""
    predicted: Labels
    """n: the class with the highest score, the first of tied ones."""
    ranks: Labels
    """n: number of classes ranked above the right one; 0 for a right prediction."""
    probabilities: NDArray[np.float64]
    """n: probability of the predicted class."""
    losses: NDArray[np.float64]
    """n: cross-entropy."""

    def __len__(self) -> int:
        return len(self.ids)

    def top(self, k: int) -> float:
        """Top-k accuracy: fraction of the images whose class is among the k highest scores."""
        return float((self.ranks < k).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    def unreadable(self, source: Source) -> tuple[str, ...]:
        """Return the names of the images of a source without a prediction."""
        missing = np.setdiff1d(np.arange(len(source)), self.ids)
        return tuple(source.name(i) for i in missing.tolist())

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """Return the confusion matrix K K: rows are true classes, columns predicted ones."""
        cells = np.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)


def log_probabilities(scores: Tensor) -> Tensor:
    """Return the logarithms of the probabilities, float64 on the CPU, of class scores B K.

    Raises:
        WeightsError: for non-finite scores.
    """
    scores = scores.detach().double().cpu()
    if not bool(scores.isfinite().all()):
        raise WeightsError(
            "scores: got NaN or infinity from the classifier: its weights are damaged or its "
            "training failed; use other weights"
        )
    return scores.log_softmax(dim=1)


def predictions_from_scores(scores: Tensor, *, labels: Labels, ids: Ids) -> Predictions:
    """Compute predictions, ranks and losses from class scores.

    Args:
        scores: B K, before the softmax.
        labels: B classes, 0 to K - 1.
        ids: B ids of the images.

    Raises:
        WeightsError: for non-finite scores.
    """
    logs, scores = log_probabilities(scores), scores.detach().double().cpu()
    right = torch.from_numpy(labels)[:, None]
    own = scores.gather(1, right)  # B 1
    classes = torch.arange(scores.shape[1])
    ahead = (scores > own) | ((scores == own) & (classes < right))
    predicted = scores.argmax(dim=1)
    # All are exponentiated, as `predict` does it, so that both give the same bits.
    likely, losses = logs.exp().gather(1, predicted[:, None]), -logs.gather(1, right)
    found = (predicted, ahead.sum(dim=1), likely.squeeze(1), losses.squeeze(1))
    return Predictions(ids, labels, *(value.numpy() for value in found))


class ClassRow(NamedTuple):
    """Results of the images of one class."""

    name: str
    images: int
    right: int
    mistaken_for: str
    """Most frequent wrong prediction; empty where all are right."""
    accuracy: float
    """Fraction of right predictions; NaN without images."""


def class_rows(confusion: NDArray[np.int64], names: Sequence[str]) -> list[ClassRow]:
    """Return a row for each class, in order.

    Args:
        confusion: K K, see `Predictions.confusion`.
        names: K.
    """
    rows = []
    for number, (name, counts) in enumerate(zip(names, confusion.tolist(), strict=True)):
        right, images = counts[number], sum(counts)
        wrong = [*counts[:number], 0, *counts[number + 1 :]]
        other = names[wrong.index(max(wrong))] if any(wrong) else ""
        rows.append(ClassRow(name, images, right, other, right / images if images else math.nan))
    return rows
