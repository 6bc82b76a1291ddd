"""Exact weighted k-NN classifier on features (protocol of DINO, Caron et al. 2021).

Not in the MAE paper: a fast evaluation of features without training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.errors import ConfigError
from mae.evaluation.features import Array
from mae.evaluation.split import Labels
from mae.parallel.processes import SINGLE_PROCESS, Communicator

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1000  # test rows at a time: 80 MB for 10,000 training rows
_UNIT = 2**24


@torch.inference_mode()
def knn_predict(
    train_x: Array, train_y: Labels, test_x: Array, *, k: int, temperature: float
) -> Labels:
    """Predict the class with most votes for each test row, exp(cosine / temperature) a neighbour.

    Ties between neighbours go to the earlier training row, ties between votes to the smaller
    class. A row of zeros is equally far from all others. The prediction of a test row does not
    depend on the other test rows, bit for bit, so processes can divide them in any way.

    Args:
        train_x: n F.
        train_y: n classes, from 0.
        test_x: m F.
        k: number of neighbours, at most n.
        temperature: above 0; smaller values give the nearest neighbours more weight.

    Returns:
        m classes.

    Raises:
        ConfigError: for k below 1 or above n, or a temperature of 0 or less.
    """
    if not 1 <= k <= len(train_x):
        raise ConfigError(f"k: got {k} neighbours, expected 1 to {len(train_x)} training images")
    require_temperature(temperature)
    bank = _directions(torch.from_numpy(train_x)).T  # F n
    labels = torch.from_numpy(train_y)
    predicted = []
    for chunk in torch.split(torch.from_numpy(test_x), CHUNK):
        rows = _directions(chunk)
        near, ids = _nearest(rows @ bank, k=k)  # both m k
        votes = torch.zeros(len(rows), int(labels.max()) + 1, dtype=near.dtype)
        # Minus 1, the largest cosine: the same votes up to a factor, without overflow.
        votes.scatter_add_(1, labels[ids], ((near - 1) / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted).numpy()


def require_temperature(temperature: float) -> None:
    """Raise unless the temperature is above 0.

    Raises:
        ConfigError: for 0, a negative number or NaN.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature: expected a number above 0, got {temperature}")


def _directions(rows: Tensor) -> Tensor:
    """Scale rows to length 1, rounded to multiples of 2^-24.

    Every partial sum of their products is then a multiple of 2^-48 below 2, exact in float64, so
    cosines do not depend on the machine, the chunks or the order of summation.
    """
    directions = F.normalize(rows.double(), dim=1)
    return (directions * _UNIT).round() / _UNIT


def _nearest(similarity: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    top = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    near, ids = top.values[:, :k], top.indices[:, :k]
    # topk does not define the order of ties; a stable sort does where it matters.
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
    ranks: Communicator = SINGLE_PROCESS,
) -> float:
    """Return the accuracy of `knn_predict`, 0 to 1; processes divide the test rows."""
    mine = ranks.process.shard(range(len(test_x)))
    predicted = knn_predict(train_x, train_y, test_x[mine], k=k, temperature=temperature)
    right = ranks.all_gather(int((predicted == test_y[mine]).sum()))
    return sum(right) / len(test_x)
