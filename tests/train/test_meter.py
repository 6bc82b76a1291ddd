"""Where the memory of a step goes."""

from __future__ import annotations

import torch

from mae.config import PretrainConfig
from mae.jobs.setup import new_state
from mae.model.create import create
from mae.train.meter import StateBytes, state_bytes
from mae.train.step import OptimiserStep, pretraining_loss
from tests.gpu.small import COUNT, MODEL, small_batches


def test_the_parts_of_a_state_are_counted() -> None:
    config = PretrainConfig(model=MODEL, batch=COUNT, device="cpu")
    state = new_state(create(MODEL), config)
    step = OptimiserStep(loss=pretraining_loss, config=config, device=torch.device("cpu"))
    before = state_bytes(state)

    step(state, small_batches(1)[0], lr=1e-3)

    trained = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in state.model.parameters() if not p.requires_grad)
    assert before == StateBytes(trained + frozen, 0, 0)
    steps = 4 * len(state.optimizer.state)  # AdamW counts them for each parameter
    assert state_bytes(state) == StateBytes(trained + frozen, trained, 2 * trained + steps)


def test_what_is_left_of_the_peak_is_the_pictures() -> None:
    said = StateBytes(2**30, 2**29, 2**31).said(5 * 2**30)

    assert said == (
        "memory: 5.00 GiB at the peak: weights 1.00, gradients 0.50, moments 2.00, pictures 1.50"
    )
