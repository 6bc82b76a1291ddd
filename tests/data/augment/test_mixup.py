"""Mixing against timm's batch mode, and as a function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data import mixup as timms

from mae.config.run import MixConfig
from mae.data.augment.mixup import Mixing, cut_box, mixed_images, mixing, soft_targets

BOTH = MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1)
SIZE = (12, 20)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("fraction", [0.07, 0.31, 0.9, 1.0])
def test_averaged_images_and_labels_are_timms(fraction, images, monkeypatch) -> None:
    other = timms.Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=5)
    monkeypatch.setattr(other, "_params_per_batch", lambda: (fraction, False))

    how = Mixing(fraction, None)

    expected, targets = other(images.clone(), LABELS)
    torch.testing.assert_close(mixed_images(images, how), expected, rtol=0, atol=1e-6)
    found = soft_targets(LABELS, how, num_classes=5, smoothing=0.1)
    torch.testing.assert_close(found, targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.07, 0.31, 0.9, 0.9999])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.4, 0.6), (0.99, 0.02)])
def test_cut_images_and_labels_are_timms(fraction, centre, images, monkeypatch) -> None:
    other = timms.Mixup(mixup_alpha=0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    monkeypatch.setattr(other, "_params_per_batch", lambda: (fraction, True))
    places = iter([int(at * edge) for at, edge in zip(centre, SIZE, strict=True)])
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: next(places))

    how = cut_box(fraction, size=SIZE, centre=centre)

    expected, targets = other(images.clone(), LABELS)
    assert torch.equal(mixed_images(images, how), expected)
    found = soft_targets(LABELS, how, num_classes=5, smoothing=0.1)
    torch.testing.assert_close(found, targets, rtol=0, atol=1e-6)


def drawn(config: MixConfig, count: int = 4000) -> list[Mixing]:
    return [mixing(config, seed=3, step=step, size=SIZE) for step in range(count)]


@pytest.mark.slow
def test_shares_follow_their_beta_distributions() -> None:
    averaged = [how.fraction for how in drawn(MixConfig(mixup=0.8))]
    cut = drawn(MixConfig(cutmix=1.0))

    # A Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert np.mean(averaged) == pytest.approx(0.5, abs=0.02)
    assert np.var(averaged) == pytest.approx(1 / 10.4, abs=0.005)
    assert all(how.box is not None for how in cut)


def test_the_choice_between_them_and_whether_at_all_have_their_probabilities() -> None:
    both = drawn(MixConfig(mixup=0.8, cutmix=1.0, switch=0.3, probability=0.6))

    unmixed = [how for how in both if how == Mixing(1.0, None)]
    assert len(unmixed) / len(both) == pytest.approx(0.4, abs=0.03)
    cut = [how for how in both if how.box is not None]
    assert len(cut) / (len(both) - len(unmixed)) == pytest.approx(0.3, abs=0.03)


def test_a_batch_is_mixed_the_same_way_every_time_and_others_in_other_ways() -> None:
    first, again = drawn(BOTH, 20), drawn(BOTH, 20)

    assert first == again
    assert len(set(first)) == 20
    assert mixing(BOTH, seed=4, step=0, size=SIZE) != first[0]


def test_without_mixing_images_stay_and_labels_are_only_smoothed(images) -> None:
    how = mixing(MixConfig(smoothing=0.1), seed=0, step=7, size=SIZE)

    assert mixed_images(images, how) is images
    targets = soft_targets(LABELS, how, num_classes=5, smoothing=0.1)
    assert targets[1].tolist() == pytest.approx([0.02, 0.02, 0.02, 0.02, 0.92])
