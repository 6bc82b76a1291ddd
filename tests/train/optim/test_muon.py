"""Muon against singular values worked out by numpy, torch's Muon, and AdamW on the rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from torch import nn

from mae.config.run import OptimConfig
from mae.model.create import create
from mae.runs.checkpoint import load_checkpoint, save_checkpoint
from mae.runs.state import TrainState
from mae.train.optim.muon import COEFFICIENTS, MOMENTUM, STEPS, Muon, evened
from mae.train.optim.parameter_groups import create_optimizer
from tests.model.tiny import tiny_config

OPTIM = OptimConfig(lr=0.01, weight_decay=0.1)
Name = Literal["adamw", "muon", "lars"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "shape", [(2, 3, 5), (3, 4, 4), (1, 1, 6), (2, 5, 3), (2, 3, 7), (3, 9, 4)]
)
def test_only_the_singular_values_of_a_step_change(
    generator: torch.Generator, shape: tuple[int, int, int]
) -> None:
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    left, values, right = np.linalg.svd(matrices.numpy(), full_matrices=False)
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        values = a * values + b * values**3 + c * values**5

    found = evened(matrices)

    # Beyond the guard against a division by zero, which moves every value by 1e-7.
    np.testing.assert_allclose(found.numpy(), left * values[:, None] @ right, rtol=0, atol=1e-5)
    assert ((values > 0.6) & (values < 1.3)).all()


@pytest.mark.parametrize("shape", [(3, 5), (3, 7), (7, 3)])
def test_a_gradient_of_zeros_gives_a_step_of_zeros(shape: tuple[int, int]) -> None:
    assert not evened(torch.zeros(2, *shape)).any()


@pytest.mark.parametrize(("shape", "tolerance"), [((16, 17), 1e-5), ((16, 48), 1e-3)])
def test_without_native_bf16_steps_are_as_exact_as_float32(
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    tolerance: float,
) -> None:
    """Also for matrices of nearly low rank, whose singular values span six digits."""
    left, _, right = torch.randn(shape, generator=generator, dtype=torch.float64).svd()
    matrix = ((left * torch.logspace(0, -6, 16)) @ right.mT)[None]
    exact = evened(matrix)
    errors = {}
    for native in (False, True):
        monkeypatch.setattr("mae.train.optim.muon.has_bf16", lambda device, native=native: native)
        errors[native] = float((evened(matrix.float()) - exact).norm() / exact.norm())
    assert errors[False] < tolerance
    assert errors[True] > 10 * tolerance


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_a_matrix_takes_the_steps_of_torchs_muon(
    generator: torch.Generator, shape: tuple[int, int]
) -> None:
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = deepcopy(ours)
    group = {"params": [ours], "lr": 0.02, "weight_decay": 0.1, "parts": 1}
    own = Muon([group], lr=0.02)
    peer = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    begun = ours.detach().clone()

    for _ in range(7):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        own.step()
        peer.step()

    moved = (ours - begun).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # both in bf16, of 8 bits


def test_a_fused_query_key_and_value_are_three_matrices(generator: torch.Generator) -> None:
    fused = nn.Parameter(torch.randn(12, 4, generator=generator))
    alone = [nn.Parameter(part.detach().clone()) for part in fused.chunk(3)]
    fused.grad = torch.randn(12, 4, generator=generator)
    for part, gradient in zip(alone, fused.grad.chunk(3), strict=True):
        part.grad = gradient.clone()

    Muon([{"params": [fused], "parts": 3}], lr=0.1).step()
    Muon([{"params": alone, "parts": 1}], lr=0.1).step()

    assert torch.equal(fused, torch.cat(alone))


def state_of(name: Name, *, seed: int = 0) -> TrainState:
    model = create(tiny_config(), seed=seed)
    return TrainState(model, create_optimizer(model, replace(OPTIM, name=name)))


def set_gradients(state: TrainState) -> None:
    drawn = torch.Generator().manual_seed(state.step)
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=drawn)


def step(state: TrainState) -> None:
    set_gradients(state)
    state.optimizer.step()
    state.step += 1


def test_whatever_is_no_matrix_of_a_block_is_adamws() -> None:
    muon, plain = state_of("muon"), state_of("adamw")
    for _ in range(3):
        step(muon)
        step(plain)

    changed = set()
    pairs = zip(muon.model.named_parameters(), plain.model.parameters(), strict=True)
    for (name, own), other in pairs:
        if not torch.equal(own, other):
            changed.add(name)

    blocks = [name for name, _ in muon.model.named_parameters() if ".blocks." in name]
    assert changed == {n for n in blocks if n.endswith("weight") and "norm" not in n}
    assert len(changed) == 4 * len(muon.model.encoder.blocks) + 4 * len(muon.model.decoder.blocks)


def test_threads_of_a_pool_change_no_bit() -> None:
    alone, shared = state_of("muon"), state_of("muon")
    step(alone)
    assert isinstance(shared.optimizer, Muon)

    set_gradients(shared)
    with ThreadPoolExecutor(2) as pool:
        shared.optimizer.step(pool=pool)

    assert all(map(torch.equal, alone.model.parameters(), shared.model.parameters()))


@pytest.mark.parametrize("name", get_args(Name))
def test_every_optimizer_resumes_from_a_checkpoint_bit_by_bit(tmp_path: Path, name: Name) -> None:
    state = state_of(name)
    for _ in range(2):
        step(state)
    save_checkpoint(tmp_path, state, extra={}, keep=1)
    step(state)

    resumed = state_of(name, seed=1)
    load_checkpoint(tmp_path, resumed, log=lambda said: pytest.fail(said))
    step(resumed)

    assert all(map(torch.equal, state.model.parameters(), resumed.model.parameters()))
