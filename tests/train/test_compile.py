"""A step that is compiled is the plain one, and without a compiler a run goes on plainly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mae.config.run import PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.model.create import create
from mae.train.compile import compiled_loss, is_compiled
from mae.train.measure import StepRecipe
from mae.train.resolve import batch_plan, new_state
from mae.train.step import Loss, OptimiserStep, pretraining_loss
from tests.model.tiny import tiny_config

CPU = torch.device("cpu")
CONFIG = PretrainConfig(
    model=tiny_config(depth=1),
    batch=6,
    micro_batch=3,
    device="cpu",
    compile=True,
    checkpoint_every=1,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), dtype=np.uint8)
PLAN = batch_plan(CONFIG, ArraySource(IMAGES), PixelKind("uint8", 3))


@pytest.mark.parametrize(
    ("asked", "device", "compiled"),
    [(None, "cuda", True), (None, "cpu", False), (True, "cpu", True), (False, "cuda", False)],
)
def test_a_gpu_compiles_unless_it_is_told_not_to(
    asked: bool | None,  # noqa: FBT001
    device: str,
    *,
    compiled: bool,
) -> None:
    assert is_compiled(PretrainConfig(compile=asked), torch.device(device)) == compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.timeout(900)  # a C++ compiler on a busy machine
def test_losses_and_gradients_are_the_plain_ones() -> None:
    """Of two micro-batches whose blocks are computed again."""
    said: list[str] = []
    run: Any = SimpleNamespace(config=CONFIG, progress=SimpleNamespace(note=said.append))
    state = new_state(create(CONFIG.model, seed=5), CONFIG)
    names = [*state.model.state_dict()]

    loss = compiled_loss(run, state, PLAN, StepRecipe())

    assert said == [] and loss is not pretraining_loss
    assert [*state.model.state_dict()] == names
    trained = [p for p in state.model.parameters() if p.requires_grad]
    assert all(p.grad is None for p in trained)

    def taken(loss: Loss) -> list[torch.Tensor]:
        fixed = new_state(create(CONFIG.model, seed=5), CONFIG)
        step = OptimiserStep(loss=loss, config=CONFIG, device=CPU)
        with step.side_by_side():
            metrics = step(fixed, training_batch(PLAN, 1), lr=0.0)
        trained = [p for p in fixed.model.parameters() if p.requires_grad]
        return [metrics.loss, *(p.grad for p in trained if p.grad is not None)]

    for found, expected in zip(taken(loss), taken(pretraining_loss), strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_without_a_compiler_a_run_says_so_in_one_line_and_is_the_plain_one(tmp_path: Path) -> None:
    words = "-m mae pretrain demo --data fashion-mnist --steps 1 --batch 4 --micro-batch none"
    missing = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}

    done = [
        subprocess.run(
            [sys.executable, *words.split(), "--device=cpu", f"--out={tmp_path / flag}", flag],
            capture_output=True, text=True, timeout=200, check=False, env={**os.environ, **missing},
        )
        for flag in ("--compile", "--compile=no")
    ]  # fmt: skip

    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    lines = [line for line in done[0].stderr.splitlines() if "compile: failed" in line]
    assert len(lines) == 1 and "Traceback" not in done[0].stderr
    weights = [
        tmp_path / flag / "weights" / "model.safetensors" for flag in ("--compile", "--compile=no")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
