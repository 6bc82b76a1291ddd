"""Figures of health in closed cases, and held against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from mae.evaluation.health import (
    dead_share,
    duplicate_share,
    effective_rank,
    gain_db,
    input_std,
    mean_cosine,
    nearest_label_share,
)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def test_the_rank_of_equal_features_is_one() -> None:
    assert effective_rank(torch.tensor([[3.0, -4.0, 1.0]]).repeat(6, 1)) == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_the_rank_of_orthogonal_features_is_their_number(n: int) -> None:
    directions = torch.linalg.qr(torch.randn(11, n, generator=torch.Generator().manual_seed(n))).Q

    assert effective_rank(3 * directions.T) == pytest.approx(n)


def test_the_rank_is_the_exponential_of_scipys_entropy(features: torch.Tensor) -> None:
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)

    assert effective_rank(features) == pytest.approx(np.exp(entropy(singular)))


def test_features_of_zero_have_no_rank_and_no_direction() -> None:
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert dead_share(torch.zeros(4, 3)) == 1


def test_directions_without_variance_are_dead(features: torch.Tensor) -> None:
    features[:, 3] = 2.0
    features[:, 4] = features[:, 0]

    assert dead_share(features) == pytest.approx(2 / 5)


def test_three_images_vary_along_two_directions_at_most(features: torch.Tensor) -> None:
    assert dead_share(features[:3]) == 0
    assert dead_share(features[:1].repeat(3, 1)) == 1


def test_the_mean_cosine_is_that_of_numpys_pairs(features: torch.Tensor) -> None:
    rows = features.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [rows[i] @ rows[j] for i in range(7) for j in range(i)]

    assert mean_cosine(features) == pytest.approx(np.mean(pairs))
    assert mean_cosine(features[:1].repeat(4, 1)) == pytest.approx(1)


def test_a_tenth_of_the_error_is_a_gain_of_ten_db() -> None:
    assert gain_db(0.2, 2.0) == pytest.approx(10)
    assert gain_db(0.0, 0.0) == 0  # blank images


def test_the_nearest_other_image_votes() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])

    assert nearest_label_share(features, np.array([0, 0, 1, 1])) == 1
    assert nearest_label_share(features, np.array([0, 1, 0, 0])) == 0.5


def test_copies_are_counted_in_a_sample(rng: np.random.Generator) -> None:
    distinct = rng.integers(0, 256, (2000, 9, 13, 3), dtype=np.uint8)
    many = np.repeat(distinct[:50], 20, axis=0)[rng.permutation(1000)[:40]]

    assert duplicate_share([*many], count=1000) == pytest.approx(0.95, abs=0.03)
    assert duplicate_share([*distinct[:40]], count=2000) == 0
    assert duplicate_share([distinct[0]] * 40, count=2000) > 0.97


def test_the_std_of_pixels_is_that_of_numpy_about_the_mean_of_each_channel() -> None:
    images = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0)) * 0.01
    images[:, 1] += 2.0  # a channel of another mean adds nothing

    found = input_std(images.mean(dim=(2, 3)), images.square().mean(dim=(2, 3)))

    variance = images.double().numpy().var(axis=(0, 2, 3)).mean()
    assert found == pytest.approx(np.sqrt(variance), rel=1e-2)
