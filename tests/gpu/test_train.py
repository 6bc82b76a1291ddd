"""Training on a GPU: steps, checkpoints, and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae.data.batching.batch import Batch
from mae.data.batching.loader import on_device
from mae.parallel.processes import SINGLE_PROCESS, open_communicator
from mae.runs.checkpoint import load_checkpoint, save_checkpoint
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps, fit
from mae.train.step import OptimiserStep, pretraining_loss
from tests.gpu.small import CONFIG, small_batches, state_of
from tests.runs.test_checkpoint import assert_same

STEPS = 5


def losses(state: TrainState, given: list[Batch], **changes: object) -> list[float]:
    """Train by the given batches, and tell the loss of each step."""
    device = next(state.model.parameters()).device
    config = replace(CONFIG, device=device.type, **changes)  # type: ignore[arg-type]
    step = OptimiserStep(loss=pretraining_loss, config=config, device=device)
    told = list[float]()
    see = EveryNSteps(1, lambda _, metrics: told.append(float(metrics.loss)))
    fed: Iterator[Batch] = on_device(given, device)
    num_steps = state.step + len(given)
    fit(state, fed, step, num_steps=num_steps, rate=lambda _: 1e-3, callbacks=[see])
    return told


@pytest.mark.parametrize("micro_batch", [None, 4, 1])
def test_five_steps_lose_what_they_lose_on_a_cpu(micro_batch: int | None) -> None:
    """Micro-batches of 4 and 2 as well."""
    there, given = state_of("cuda"), small_batches(STEPS)

    found = losses(there, given, micro_batch=micro_batch)

    assert there.step == len(found) == STEPS
    assert found == pytest.approx(losses(state_of("cpu"), given), rel=1e-4)


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-2), ("bf16", 4e-2)])
def test_five_steps_in_half_precision_lose_about_as_much(
    precision: str, tolerance: float, micro_batch: int | None
) -> None:
    there, given = state_of("cuda", precision=precision), small_batches(STEPS)
    before = [p.detach().clone() for p in there.model.parameters() if p.requires_grad]

    found = losses(there, given, precision=precision, micro_batch=micro_batch)

    assert (there.scaler is not None) == (precision == "fp16")
    assert found == pytest.approx(losses(state_of("cpu"), given), rel=tolerance)
    after = [p for p in there.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.is_cuda for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    given = small_batches(STEPS)
    whole, first, again = (state_of("cuda", precision=precision) for _ in range(3))

    # The fused kernels' backward adds up in an order that is not fixed.
    with sdpa_kernel(SDPBackend.MATH):
        losses(whole, given, precision=precision)
        losses(first, given[:2], precision=precision)
        save_checkpoint(tmp_path, first, extra={}, keep=2)
        load_checkpoint(tmp_path, again, log=print)
        assert_same(again, first)
        losses(again, given[2:], precision=precision)

    assert_same(again, whole)
    assert next(again.model.parameters()).is_cuda


def test_a_checkpoint_of_a_gpu_is_read_on_a_cpu_and_trains_on(tmp_path: Path) -> None:
    given = small_batches(STEPS)
    there, here = state_of("cuda"), state_of("cpu")
    losses(there, given[:3])
    save_checkpoint(tmp_path, there, extra={}, keep=2)

    load_checkpoint(tmp_path, here, log=print)

    saved, read = there.model.state_dict(), here.model.state_dict()
    assert all(torch.equal(value.cpu(), read[name]) for name, value in saved.items())
    assert not any(value.is_cuda for value in read.values())
    assert losses(here, given[3:]) == pytest.approx(losses(there, given[3:]), rel=1e-4)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")

    with open_communicator() as ranks:
        assert ranks is SINGLE_PROCESS
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("count", "said"), [(1, "reduced by nccl"), (2, "met beside nccl")])
def test_processes_meet_where_nccl_stands_ready(count: int, said: str) -> None:
    """Both of two use the one GPU; what they gather goes through the host."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    many = [f"--nproc-per-node={count}", "-m", "tests.gpu.ranks"]

    done = subprocess.run(
        [*launcher, *many], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count(said) == count
