import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mae.config.run import OptimConfig
from mae.train.optim.lars import TRUST, Lars
from mae.train.optim.parameter_groups import create_optimizer
from tests.model.tiny import tiny_model
from tests.test_golden import DIGITS, fill

PUBLISHED = json.loads((Path(__file__).parents[2] / "golden" / "lars.json").read_text())


def test_pretraining_by_lars_decays_matrices_alone() -> None:
    model = tiny_model(torch.Generator().manual_seed(0))

    optimizer = create_optimizer(model, OptimConfig(name="lars", betas=(0.8, 0.95)))

    assert isinstance(optimizer, Lars)
    decayed = {group["weight_decay"]: group for group in optimizer.param_groups}
    assert decayed.keys() == {0.05, 0.0}
    assert all(parameter.ndim > 1 for parameter in decayed[0.05]["params"])
    assert all(parameter.ndim == 1 for parameter in decayed[0.0]["params"])
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_three_steps_equal_the_published_ones():
    w = nn.Parameter(0.1 + fill(torch.Size((3, 4)), 1))
    b = nn.Parameter(0.2 + fill(torch.Size((3,)), 2))
    optimizer = Lars([w, b], lr=PUBLISHED["lr"])

    for step, expected in enumerate(PUBLISHED["after_each_step"]):
        w.grad, b.grad = fill(w.shape, 5 + step), fill(b.shape, 9 + step)
        optimizer.step()

        assert w.detach().flatten().tolist() == pytest.approx(expected["w"], abs=DIGITS)
        assert b.detach().tolist() == pytest.approx(expected["b"], abs=DIGITS)
    assert TRUST == PUBLISHED["trust_coefficient"] and PUBLISHED["momentum"] == 0.9


def test_a_matrix_moves_by_a_thousandth_of_its_norm_times_the_rate():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    w.grad = torch.tensor([[0.0, 100.0]])

    Lars([w], lr=2.0).step()

    assert w.tolist() == [[3.0, pytest.approx(4 - 2 * 0.001 * 5)]]


def test_decay_is_added_before_the_scaling_and_never_to_a_vector():
    w, b = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    w.grad, b.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 0.0])

    Lars([w, b], lr=1.0, weight_decay=0.5).step()

    q = 0.001 * 5 / math.hypot(1 + 1.5, 2.0)
    assert w.tolist() == [[pytest.approx(3 - q * 2.5), pytest.approx(4 - q * 2.0)]]
    assert b.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(("value", "gradient"), [(0.0, 2.0), (2.0, 0.0)])
def test_zeros_are_not_scaled(value: float, gradient: float):
    w = nn.Parameter(torch.full((1, 3), value))
    w.grad = torch.full((1, 3), gradient)

    Lars([w], lr=0.5).step()

    assert w.tolist() == [[value - 0.5 * gradient] * 3]


def test_a_parameter_without_a_gradient_stays():
    w = nn.Parameter(torch.ones(2, 3))

    Lars([w], lr=1.0).step()

    assert torch.equal(w.detach(), torch.ones(2, 3))
