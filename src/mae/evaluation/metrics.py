"""What a classifier says of each picture, and the figures that follow: one row a picture.

Every figure is computed from the rows, so each picture counts once, whatever the batch and
however many processes share the work: their rows are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.errors import WeightsError

Ids = NDArray[np.int64]


class Verdicts(NamedTuple):
    """What was said of n pictures."""

    ids: Ids
    """n: which pictures."""
    labels: Ids
    """n: their classes."""
    predicted: Ids
    """n: the class of highest score, the first of equal ones."""
    ranks: Ids
    """n: classes ahead of the right one; 0 where the prediction is right."""
    probabilities: NDArray[np.float64]
    """n: of the predicted class."""
    losses: NDArray[np.float64]
    """n: cross-entropy."""

    def __len__(self) -> int:
        return len(self.ids)

    def top(self, k: int) -> float:
        """Share of the pictures whose class is among the k highest scores."""
        return float((self.ranks < k).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    def confusion(self, num_classes: int) -> Ids:
        """Count K K: rows are the classes, columns what was predicted."""
        cells = np.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)


def verdicts(scores: Tensor, *, labels: Ids, ids: Ids) -> Verdicts:
    """Judge the scores of some pictures.

    Args:
        scores: B K, before the softmax.
        labels: B classes, 0 to K - 1.
        ids: B.

    Raises:
        WeightsError: for scores that are no numbers, of which no class would be the highest.
    """
    scores = scores.detach().double().cpu()
    if not bool(scores.isfinite().all()):
        raise WeightsError(
            "scores: got NaN or infinity from the classifier, expected finite; its weights are "
            "damaged, or its training failed"
        )
    right = torch.from_numpy(labels)[:, None]
    own = scores.gather(1, right)  # B 1
    classes = torch.arange(scores.shape[1])
    ahead = (scores > own) | ((scores == own) & (classes < right))
    logs = scores.log_softmax(dim=1)
    predicted = scores.argmax(dim=1)
    likely, losses = logs.gather(1, predicted[:, None]).exp(), -logs.gather(1, right)
    found = (predicted, ahead.sum(dim=1), likely.squeeze(1), losses.squeeze(1))
    return Verdicts(ids, labels, *(value.numpy() for value in found))


def joined(parts: Sequence[Verdicts]) -> Verdicts:
    """Put parts together, in the order of the ids: of batches, or of processes.

    Args:
        parts: at least one, of different pictures.
    """
    whole = Verdicts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = whole.ids.argsort(kind="stable")
    return Verdicts(*(column[order] for column in whole))  # type: ignore[arg-type]


class ClassRow(NamedTuple):
    """How the pictures of one class fared."""

    name: str
    pictures: int
    right: int
    mistaken_for: str
    """Most frequent wrong prediction; nothing where all are right."""

    @property
    def accuracy(self) -> float:
        """Share that was right; NaN without a picture."""
        return self.right / self.pictures if self.pictures else float("nan")


def class_rows(confusion: Ids, names: Sequence[str]) -> list[ClassRow]:
    """Give a row for each class, in their order.

    Args:
        confusion: K K, see `Verdicts.confusion`.
        names: K.
    """
    rows = []
    for number, counts in enumerate(confusion):
        wrong = np.where(np.arange(len(names)) == number, 0, counts)
        other = names[int(wrong.argmax())] if wrong.any() else ""
        rows.append(ClassRow(names[number], int(counts.sum()), int(counts[number]), other))
    return rows
