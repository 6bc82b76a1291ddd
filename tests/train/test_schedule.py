"""Rates and cadences."""

from __future__ import annotations

import pytest

from mae.config.run import FitConfig, OptimConfig
from mae.train.schedule import due, learning_rate, log_every, rate_at


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 2.4e-7), (20, 1.20012e-3), (40, 2.4e-3), (220, 1.2e-3), (400, 0.0)],
)
def test_the_seed_recipe_warms_up_from_a_ten_thousandth(epoch: float, expected: float) -> None:
    rate = learning_rate(epoch, epochs=400, warmup_epochs=40, peak_lr=2.4e-3, warmup_start=1e-4)

    assert rate == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_the_floor_is_reached_at_the_end() -> None:
    assert learning_rate(10, epochs=10, warmup_epochs=1, peak_lr=1.0, min_lr=0.25) == 0.25


def test_the_warm_up_keeps_its_share_whatever_the_number_of_steps() -> None:
    config = FitConfig(epochs=400, batch=256, optim=OptimConfig(lr=1.0, warmup_epochs=40))

    assert rate_at(10, num_steps=100, config=config, batch=256) == 1.0
    assert rate_at(100, num_steps=1000, config=config, batch=256) == 1.0
    assert rate_at(50, num_steps=1000, config=config, batch=256) == 0.5


def test_the_peak_is_scaled_by_the_batch() -> None:
    assert OptimConfig(lr=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)


@pytest.mark.parametrize(
    ("step", "expected"), [(1, False), (4, True), (8, True), (9, False), (10, True)]
)
def test_due_every_four_steps_and_at_the_last(step: int, expected: bool) -> None:  # noqa: FBT001
    assert due(step, 4, 10) is expected


@pytest.mark.parametrize("num_steps", [1, 2, 44, 199, 200, 299, 300, 1_000, 7_020, 500_400])
def test_a_log_has_about_two_hundred_rows_or_one_a_step(num_steps: int) -> None:
    every = log_every(num_steps)

    rows = sum(due(step, every, num_steps) for step in range(1, num_steps + 1))

    assert rows == num_steps if num_steps < 300 else 150 <= rows <= 250
