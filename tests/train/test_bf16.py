"""bf16 on a CPU: the same images and masks, a loss within 1 %, a state in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mae.config.model import ModelConfig
from mae.data.batching.batch import Batch, training_batch
from mae.model.create import create
from mae.model.onednn_linear import Linear
from mae.runs.checkpoint import load_checkpoint, save_checkpoint
from mae.runs.state import TrainState
from mae.train.fit import fit
from mae.train.resolve import new_state
from mae.train.step import OptimiserStep, pretraining_loss
from tests.train.test_fp16 import CONFIG as FP16
from tests.train.test_fp16 import PLAN, state_of, weights_of

CONFIG = replace(FP16, precision="bf16", micro_batch=2)
CPU = torch.device("cpu")


def train(state: TrainState, *, until: int) -> None:
    batches = (training_batch(PLAN, step) for step in range(state.step, until))
    step = OptimiserStep(loss=pretraining_loss, config=CONFIG, device=CPU)
    fit(state, batches, step, num_steps=until, rate=lambda _: 1e-3)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_a_step_casts_each_weight_once_and_leaves_gradients_and_moments_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, cast = state_of(CONFIG), list[nn.Module]()
    monkeypatch.setattr(Linear, "matrix", lambda self: cast.append(self) or self.weight)

    train(state, until=1)
    cast.clear()
    train(state, until=2)

    layers = [part for part in state.model.modules() if isinstance(part, Linear)]
    # A loop of its own: once for the memory and once for the cast, for three micro-batches.
    assert len(cast) == 2 * len(layers)
    assert all(part.bf16_matrix is None for part in layers)
    tensors = [*state.model.state_dict().values(), *(p.grad for p in state.model.parameters())]
    moments = [t for each in state.optimizer.state.values() for t in each.values()]
    assert {t.dtype for t in (*tensors, *moments) if t is not None} == {torch.float32}


def test_threads_change_no_bit() -> None:
    ends = list[dict[str, Tensor]]()
    for threads in (1, 3):
        state, before = state_of(CONFIG), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            train(state, until=3)
        finally:
            torch.set_num_threads(before)
        ends.append(weights_of(state))

    assert equal(*ends)


def test_a_resumed_run_ends_bit_for_bit_and_saves_float32(tmp_path: Path) -> None:
    whole, begun, resumed = state_of(CONFIG), state_of(CONFIG), state_of(CONFIG, scale=1.0)
    train(whole, until=4)
    train(begun, until=2)
    save_checkpoint(tmp_path, begun, extra={}, keep=2)

    load_checkpoint(tmp_path, resumed, log=print)
    train(resumed, until=4)

    assert equal(weights_of(whole), weights_of(resumed))
    files = [file for file in tmp_path.rglob("*.safetensors")]
    assert files
    assert {t.dtype for file in files for t in load_file(file).values()} == {torch.float32}


def losses(precision: str, model: ModelConfig, *, steps: int) -> tuple[list[float], list[Batch]]:
    config = replace(CONFIG, precision=precision, model=model, micro_batch=None)
    torch.manual_seed(0)
    state, given, found = new_state(create(model), config), list[Batch](), list[float]()

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        given.append(batch)
        return pretraining_loss(module, batch)

    step = OptimiserStep(loss=loss, config=config, device=CPU)
    for number in range(steps):
        metrics = step(state, training_batch(PLAN, number), lr=1e-3 * min(1, number / 20))
        found.append(metrics.loss.item())
    return found, given


@pytest.mark.parametrize("steps", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_images_and_masks_are_those_of_float32_and_the_loss_within_a_hundredth(steps: int) -> None:
    model = replace(CONFIG.model, width=48)

    exact, given = losses("float32", model, steps=steps)
    half, given16 = losses("bf16", model, steps=steps)

    for left, right in zip(given, given16, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.noise, right.noise)
    assert half != exact
    assert half == pytest.approx(exact, rel=0.01)
    assert exact[-1] < 0.9 * exact[0] or steps < 200
