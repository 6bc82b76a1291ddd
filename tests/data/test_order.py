"""Order and draws are functions of (seed, epoch, id) and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mae.data.order import shuffled
from mae.data.randomness import Stream, uniform


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000])
def test_an_epoch_visits_every_sample_once(n: int) -> None:
    ids = shuffled(np.arange(n), n=n, seed=7, epoch=3)

    assert sorted(ids) == list(range(n))


def test_any_part_of_an_epoch_can_be_asked_for() -> None:
    whole = shuffled(np.arange(1000), n=1000, seed=7, epoch=3)

    assert np.array_equal(shuffled(np.array([999, 4, 500]), n=1000, seed=7, epoch=3),
                          whole[[999, 4, 500]])  # fmt: skip


def test_ten_billion_samples_need_no_table() -> None:
    n = 10**10

    ids = shuffled(np.array([0, 1, n - 1]), n=n, seed=0, epoch=0)

    assert len(set(ids)) == 3 and (ids < n).all() and (ids >= 0).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(shuffled(np.arange(50), n=50, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    }

    assert len(orders) == 9


def test_every_order_of_four_is_equally_likely() -> None:
    orders = [tuple(shuffled(np.arange(4), n=4, seed=s, epoch=0)) for s in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)

    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch_it_is_made_in() -> None:
    ids = np.array([5, 123456789, 17])

    together = uniform(1, 2, ids, stream=Stream.MASK, count=49)
    alone = uniform(1, 2, ids[1:2], stream=Stream.MASK, count=49)

    assert np.array_equal(together[1:2], alone)


def test_draws_are_uniform_and_uncorrelated_over_consecutive_ids() -> None:
    draws = uniform(0, 0, np.arange(20_000), stream=Stream.CROP, count=5)

    assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.02


def test_streams_seeds_and_epochs_do_not_share_draws() -> None:
    draws = {
        uniform(seed, epoch, np.array([3]), stream=stream, count=1).item()
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in Stream
    }

    assert len(draws) == 4 * len(Stream)


def test_masks_hide_every_patch_equally_often() -> None:
    noise = uniform(4, 0, np.arange(4000), stream=Stream.MASK, count=49)
    hidden = noise.argsort(axis=1).argsort(axis=1) >= 12
    counts = hidden.sum(axis=0)

    assert stats.chisquare(counts).pvalue > 1e-3
