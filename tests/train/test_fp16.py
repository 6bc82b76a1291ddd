"""fp16: the loss is scaled, and an overflow makes the scale smaller and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.config.run import OptimConfig, PretrainConfig
from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.errors import TrainingError
from mae.runs.checkpoint import load_checkpoint, save_checkpoint
from mae.runs.state import TrainState
from mae.train.fit import fit
from mae.train.resolve import new_state
from mae.train.step import Metrics, OptimiserStep, pretraining_loss
from tests.model.tiny import tiny_config, tiny_model

CONFIG = PretrainConfig(
    model=tiny_config(), batch=6, device="cpu", precision="fp16", optim=OptimConfig(lr=0.01)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 12, 20, 3), dtype=np.uint8)
PLAN = BatchPlan(
    source=ArraySource(IMAGES),
    kind=PixelKind("uint8", 3),
    size=(12, 20),
    grid=(3, 5),
    augment=CONFIG.augment,
    batch=6,
    seed=0,
)


def state_of(config: PretrainConfig = CONFIG, *, scale: float = 1024.0) -> TrainState:
    state = new_state(tiny_model(torch.Generator().manual_seed(0)), config)
    if state.scaler is not None:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


def take_step(state: TrainState, config: PretrainConfig = CONFIG, *, number: int = 0) -> Metrics:
    step = OptimiserStep(loss=pretraining_loss, config=config, device=torch.device("cpu"))
    with step.side_by_side():
        return step(state, training_batch(PLAN, number), lr=1e-3)


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_gradient_is_that_of_the_loss_without_its_scale(micro_batch: int | None) -> None:
    config = replace(CONFIG, micro_batch=micro_batch)
    exact = replace(config, precision="float32")

    found, expected = take_step(state_of(), config), take_step(state_of(exact), exact)

    assert found.finite and not found.overflow
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=5e-3)
    assert found.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=2e-2)


def test_an_overflow_halves_the_scale_and_leaves_the_weights() -> None:
    state = state_of(scale=2.0**120)
    before = weights_of(state)

    found = take_step(state)

    assert (found.finite, found.overflow) == (False, True)
    assert state.scaler is not None and state.scaler.get_scale() == 2.0**119
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(state).items())


def train(state: TrainState, steps: int) -> None:
    batches = (training_batch(PLAN, step) for step in range(steps))
    step = OptimiserStep(loss=pretraining_loss, config=CONFIG, device=torch.device("cpu"))
    fit(state, batches, step, num_steps=steps, rate=lambda _: 1e-3)


def test_more_than_five_overflows_in_a_row_do_not_stop_a_run() -> None:
    state = state_of(scale=2.0**120)

    train(state, 8)

    assert (state.step, state.bad_in_a_row) == (8, 0)


def test_a_loss_that_is_no_number_stops_it_as_ever() -> None:
    state = state_of()
    next(state.model.parameters()).data.fill_(torch.nan)

    with pytest.raises(TrainingError, match="5 steps in a row"):
        train(state, 8)


def test_a_checkpoint_brings_the_scale_back(tmp_path: Path) -> None:
    state, again = state_of(scale=64.0), state_of(scale=2.0)
    take_step(state)
    state.step = 1
    save_checkpoint(tmp_path, state, extra={}, keep=2)

    load_checkpoint(tmp_path, again, log=print)

    assert state.scaler is not None and again.scaler is not None
    assert again.scaler.state_dict() == state.scaler.state_dict()
    take_step(state, number=1)
    take_step(again, number=1)
    found = weights_of(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights_of(state).items())
