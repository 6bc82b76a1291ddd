"""Figures of a pre-training run that need no labels: the geometry of features, gains in dB."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.data.audit.duplicates import digest_of, exact_duplicates, near_duplicates, perceptual_hash
from mae.evaluation.reconstruction import LEAST_ERROR
from mae.evaluation.split import Labels

DEAD = 1e-3
"""A direction is dead if the std of the features along it is below this part of their length."""
_LEAST_PAIRS = 3  # of equal images in a sample; fewer say nothing about the whole


def effective_rank(features: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the normalised singular values.

    Args:
        features: n F, not centred.

    Returns:
        1 (all rows parallel) to min(n, F); 0 for features that are all 0.

    Source: Garrido et al. 2023, equations 1 and 2, without their epsilon.
    """
    singular = torch.linalg.svdvals(features.double())
    total = singular.sum()
    return float(torch.special.entr(singular / total).sum().exp()) if total > 0 else 0.0


def dead_share(features: Tensor) -> float:
    """Return the fraction of the principal directions along which the features do not vary.

    Args:
        features: n F, n at least 2; they can vary along min(n - 1, F) directions.

    Returns:
        0 to 1; 1 where all rows are equal.
    """
    n, num_features = features.shape
    most, features = min(n - 1, num_features), features.double()
    length = features.square().sum(dim=1).mean().sqrt()
    stds = torch.linalg.svdvals(features - features.mean(dim=0))[:most] / math.sqrt(n)
    return float((stds <= DEAD * length).double().mean())


def mean_cosine(features: Tensor) -> float:
    """Return the mean cosine between the features of two images, n F with n at least 2."""
    n = len(features)
    rows = F.normalize(features.double(), dim=1)
    own = float(rows.square().sum())  # n, but for rows of 0
    return (float(rows.sum(dim=0).square().sum()) - own) / (n * (n - 1))


def nearest_label_share(features: Tensor, labels: Labels) -> float:
    """Return the fraction of images whose nearest other image, by cosine, has the same label."""
    rows = F.normalize(features.double(), dim=1)
    similarity = (rows @ rows.T).fill_diagonal_(-math.inf)
    nearest = similarity.argmax(dim=1).numpy()
    return float((labels[nearest] == labels).mean())


def input_std(means: Tensor, squares: Tensor) -> float:
    """Return the std of normalised pixels about the mean of their channel.

    Args:
        means: n C, of each channel of an image.
        squares: n C, means of the squares.

    Returns:
        The root of the mean variance of the channels.
    """
    variance = squares.double().mean(dim=0) - means.double().mean(dim=0).square()
    return float(variance.clamp(min=0).mean().sqrt())


def gain_db(error: float, baseline: float) -> float:
    """Return how much smaller an error is than that of a baseline, in dB; errors are summed."""
    return 10 * math.log10(max(baseline, LEAST_ERROR) / max(error, LEAST_ERROR))


def duplicate_share(images: Sequence[NDArray[np.generic]], *, count: int) -> float:
    """Estimate which fraction of `count` images repeats others, from a random sample of them.

    It is the larger of two estimates: the images of the sample that look like an earlier one; and
    1 - 1/c for c equal copies of each image, where c follows from the pairs of equal images.

    Args:
        images: H W C each.
        count: of all images.

    Returns:
        0 to 1.
    """
    n = len(images)
    if n < 2:
        return 0.0
    alike = near_duplicates([perceptual_hash(image) for image in images])
    seen = sum(len(group) - 1 for group in alike) / n
    groups = exact_duplicates(digest_of(image) for image in images)
    pairs = sum(math.comb(len(group), 2) for group in groups)
    copies = 1 + pairs * (count - 1) / math.comb(n, 2) if pairs >= _LEAST_PAIRS else 1.0
    return max(seen, 1 - 1 / copies)
