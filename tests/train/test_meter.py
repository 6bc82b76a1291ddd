"""Where the memory of a step goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mae.config.run import PretrainConfig
from mae.model.create import create
from mae.train.meter import Meter, losses, memory_message, running_mean, state_bytes
from mae.train.resolve import new_state
from mae.train.step import Metrics, OptimiserStep, pretraining_loss
from tests.gpu.small import COUNT, MODEL, small_batches


def test_the_parts_of_a_state_are_counted() -> None:
    config = PretrainConfig(model=MODEL, batch=COUNT, device="cpu")
    state = new_state(create(MODEL), config)
    step = OptimiserStep(loss=pretraining_loss, config=config, device=torch.device("cpu"))
    before = state_bytes(state)

    step(state, small_batches(1)[0], lr=1e-3)

    trained = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in state.model.parameters() if not p.requires_grad)
    assert [*before.values()] == [trained + frozen, 0, 0]
    steps = 4 * len(state.optimizer.state)  # AdamW counts them for each parameter
    after = {"weights": trained + frozen, "gradients": trained, "moments": 2 * trained + steps}
    assert state_bytes(state) == after


def test_what_is_left_of_the_peak_is_the_images() -> None:
    parts = {"weights": 2**30, "gradients": 2**29, "moments": 2**31}

    said = memory_message(parts, 5 * 2**30)

    assert said == (
        "memory: 5.00 GiB at the peak: weights 1.00, gradients 0.50, moments 2.00, images 1.50"
    )


@pytest.mark.parametrize("end", [1, 2, 10, 11, 44, 200])
def test_the_running_mean_is_that_of_the_last_tenth_of_the_steps(end: int) -> None:
    draws = np.random.default_rng(end).random(end)
    points = [(float(step), draw) for step, draw in enumerate(draws.tolist(), start=1)]

    last = draws[end * 9 // 10 :]  # of 44: steps 40 to 44
    assert running_mean(points) == pytest.approx(last.mean(), rel=1e-12)
    assert running_mean([(16 * x, y) for x, y in points]) == pytest.approx(last.mean(), rel=1e-12)


def test_rows_of_more_steps_weigh_more() -> None:
    points = [(1.0, 9.0), (90.0, 5.0), (98.0, 2.0), (100.0, 1.0)]

    assert running_mean(points) == pytest.approx((8 * 2.0 + 2 * 1.0) / 10)
    assert running_mean(points[:2]) == 5.0
    assert math.isnan(running_mean([]))


def test_rows_without_a_finite_loss_are_passed_over() -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.nan}]

    assert losses(rows) == [(1, 3.0)]


def test_a_meter_is_the_running_mean_of_its_rows_and_of_what_came_since() -> None:
    meter = Meter()
    values = np.random.default_rng(0).random(37).tolist()
    rows = []
    for step, value in enumerate(values, start=1):
        metrics = Metrics(torch.tensor(value), torch.ones(()), 0.1, finite=True)
        meter.add(metrics)
        assert min(values[:step]) - 1e-6 <= float(meter) <= max(values[:step]) + 1e-6
        if step % 6 in (0, 1) or step == 37:
            shown = float(meter)
            rows.append({"step": step, **meter.row(metrics)})
            assert shown == running_mean(losses(rows)) == float(meter)

    resumed = Meter(rows, step=37)
    assert float(resumed) == float(meter)


def test_a_meter_without_a_step_is_no_number() -> None:
    assert math.isnan(float(Meter()))
