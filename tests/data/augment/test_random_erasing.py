"""Random erasing: how often, how large, where, and with what."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from mae.data.augment.random_erasing import erase_boxes, erased

SIZE = (48, 80)
IDS = np.arange(4000)


def test_boxes_have_the_probability_the_areas_and_the_places_of_timms() -> None:
    found = [b for b in erase_boxes(IDS, seed=1, epoch=2, rate=0.25, size=SIZE) if b]

    theirs = []
    other = RandomErasing(probability=1, mode="const", device="cpu")
    state = random.getstate()
    random.seed(0)
    for _ in range(1000):
        rows, columns = torch.where(other(torch.ones(1, *SIZE))[0] == 0)
        theirs.append((rows.min(), columns.min(), rows.max(), columns.max()))
    random.setstate(state)
    top, left, bottom, right = np.array(theirs).T
    expected = np.stack([top, left, bottom - top + 1, right - left + 1], axis=1)
    assert len(found) / len(IDS) == pytest.approx(0.25, abs=0.02)
    mine = np.array(found)
    assert mine.mean(axis=0) == pytest.approx(expected.mean(axis=0), rel=0.1)
    assert mine.std(axis=0) == pytest.approx(expected.std(axis=0), rel=0.1)
    assert (mine[:, 0] + mine[:, 2] <= 48).all() and (mine[:, 1] + mine[:, 3] <= 80).all()


def test_a_rectangle_becomes_standard_noise_and_the_rest_stays() -> None:
    images = torch.full((200, 3, *SIZE), 7.0)

    after = erased(images, IDS[:200], seed=1, epoch=2, rate=1.0)

    noise = after[after != 7]
    assert (images == 7).all()
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    for image, box in zip(
        after, erase_boxes(IDS[:200], seed=1, epoch=2, rate=1.0, size=SIZE), strict=True
    ):
        top, left, h, w = box
        assert (
            (image != 7).sum() == 3 * h * w == (image[:, top : top + h, left : left + w] != 7).sum()
        )


def test_what_is_erased_follows_from_seed_epoch_and_id_alone() -> None:
    images = torch.zeros(40, 3, *SIZE)

    whole = erased(images, IDS[:40], seed=1, epoch=2, rate=0.5)

    part = erased(images[:7], IDS[30:37], seed=1, epoch=2, rate=0.5)
    assert torch.equal(part, whole[30:37])
    assert not torch.equal(erased(images, IDS[:40], seed=1, epoch=3, rate=0.5), whole)
