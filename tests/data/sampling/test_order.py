"""Order and draws are functions of (seed, epoch, id) and nothing else."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from mae.data.sampling.draws import Stream, splitmix64, stream_key, uniform
from mae.data.sampling.order import drawn_orders, shuffled

FEW = range(1, 30)


@pytest.mark.parametrize("n", [*FEW, 30, 31, 64, 65, 1000])
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


def order_keys(seed: int, *, epochs: int) -> np.ndarray:
    """Hash (seed, epoch, stream) as `stream_key` does, for many epochs at once."""
    keys = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.arange(epochs, dtype=np.uint64))
    return splitmix64(keys ^ np.uint64(Stream.ORDER))


def test_the_orders_of_many_epochs_at_once_are_those_of_one_after_the_other() -> None:
    keys = order_keys(7, epochs=40)

    assert keys.tolist() == [stream_key(7, epoch, stream=Stream.ORDER) for epoch in range(40)]
    for n in FEW:
        one_by_one = [shuffled(np.arange(n), n=n, seed=7, epoch=epoch) for epoch in range(40)]
        assert np.array_equal(drawn_orders(keys, n=n), one_by_one)


@pytest.mark.parametrize("n", FEW[1:])
def test_every_image_of_few_is_equally_likely_at_every_place(n: int) -> None:
    epochs = 100_000
    orders = drawn_orders(order_keys(3, epochs=epochs), n=n)

    counts = np.array([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    # Rows and columns each add up to the number of epochs: (n - 1)^2 degrees of freedom.
    statistic = ((counts - epochs / n) ** 2 / (epochs / n)).sum() * (n - 1) / n

    assert 1e-3 < stats.chi2.sf(statistic, (n - 1) ** 2) < 1 - 1e-3


@pytest.mark.parametrize("n", FEW[1:6])
def test_every_order_of_few_is_equally_likely(n: int) -> None:
    orders = drawn_orders(order_keys(5, epochs=100_000), n=n)
    counts = np.unique(orders, axis=0, return_counts=True)[1]

    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_consecutive_epochs_of_few_images_are_independent() -> None:
    orders = drawn_orders(order_keys(11, epochs=100_000), n=5)

    pairs = np.bincount(orders[:-1, 0] * 5 + orders[1:, 0], minlength=25).reshape(5, 5)

    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_from_thirty_images_on_the_order_is_that_of_runs_made_before() -> None:
    """Stopped runs and published digests depend on it."""
    digest = hashlib.sha256()
    for n in (30, 31, 60, 100, 1000, 4097):
        for epoch in range(5):
            ids = shuffled(np.arange(n), n=n, seed=7, epoch=epoch)
            digest.update(ids.astype("<i8").tobytes())

    assert digest.hexdigest() == "804513c1494374009cc9ead0bcd984e8b7f8180f17e5c75adbc77cfea9d93635"
    ends = shuffled(np.array([0, 1, 10**10 - 1]), n=10**10, seed=0, epoch=0)
    assert ends.tolist() == [6217277975, 9025737044, 5242105162]


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
