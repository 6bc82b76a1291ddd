"""Exact weighted k-nearest neighbours on features (the protocol of DINO, Caron et al. 2021).

Not in the MAE paper: a cheap look at what features hold before anything is trained on them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.errors import ConfigError
from mae.evaluation.features import Array, Labels
from mae.parallel.processes import ALONE, Ranks

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1000  # test rows at a time: 10,000 training rows then take 80 MB
_UNIT = 2**24


@torch.inference_mode()
def knn_predict(
    train_x: Array, train_y: Labels, test_x: Array, *, k: int, temperature: float
) -> Labels:
    """Give each test row the class with most votes, exp(cosine / temperature) a neighbour.

    Of equally near neighbours the earlier training row counts, of equal votes the smaller class.
    A row of zeros is equally far from everything. What a test row is given does not depend on
    the others, bit for bit, so that any number of processes may take a part of them each.

    Args:
        train_x: n F.
        train_y: n classes, from 0.
        test_x: m F.
        k: neighbours, at most n.
        temperature: above 0; the smaller, the more the nearest ones decide.

    Returns:
        m classes.

    Raises:
        ConfigError: for a k of no or too many neighbours, or a temperature of 0 or less.
    """
    if not 1 <= k <= len(train_x):
        raise ConfigError(
            f"k: got {k} neighbours, expected 1 to {len(train_x)}, the training pictures; lower k"
        )
    require_temperature(temperature)
    bank = _directions(torch.from_numpy(train_x)).T  # F n
    labels = torch.from_numpy(train_y)
    predicted = []
    for chunk in torch.split(torch.from_numpy(test_x), CHUNK):
        rows = _directions(chunk)
        near, ids = _nearest(rows @ bank, k=k)  # both m k
        votes = torch.zeros(len(rows), int(labels.max()) + 1, dtype=near.dtype)
        # Less 1, the largest cosine: the same votes up to a factor, and no overflow.
        votes.scatter_add_(1, labels[ids], ((near - 1) / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted).numpy()


def require_temperature(temperature: float) -> None:
    """Refuse a temperature that orders nothing.

    Raises:
        ConfigError: for 0, less or NaN.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature: expected a number above 0, got {temperature}")


def _directions(rows: Tensor) -> Tensor:
    """Scale rows to length 1, as multiples of 2^-24.

    Every partial sum of their products is then a multiple of 2^-48 below 2, exact in float64:
    cosines are the same on any machine, however rows are cut and sums ordered.
    """
    directions = F.normalize(rows.double(), dim=1)
    return (directions * _UNIT).round() / _UNIT


def _nearest(similarity: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    top = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    near, ids = top.values[:, :k], top.indices[:, :k]
    # topk does not say which of equal values it takes; where that matters, a stable sort does.
    tied = top.values[:, k - 1] == top.values[:, -1]
    if k < similarity.shape[1] and bool(tied.any()):
        ids[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return near, ids


def knn_accuracy(
    train_x: Array,
    train_y: Labels,
    test_x: Array,
    test_y: Labels,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    ranks: Ranks = ALONE,
) -> float:
    """Share of the test rows that `knn_predict` gets right, 0 to 1; each process asks for some."""
    mine = ranks.place.share(range(len(test_x)))
    predicted = knn_predict(train_x, train_y, test_x[mine], k=k, temperature=temperature)
    right = ranks.gathered(int((predicted == test_y[mine]).sum()))
    return sum(right) / len(test_x)
