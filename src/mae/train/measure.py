"""Measure the time of training steps and the memory that they keep."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.costs import step_flops
from mae.train.resolution_schedule import Stage, stages
from mae.train.resolve import device_of, new_state
from mae.train.schedule import rate_at
from mae.train.step import Loss, OptimiserStep, pretraining_loss

RATE_STEPS, RATE_SECONDS = 10, 3.0  # at least both, to measure the rate for --minutes
WARM_SECONDS = 1.0  # not counted: the first steps allocate memory and fill caches
_PROBED_FLOPS = 2e10  # of a step measured on a CPU: a fraction of a second


class Rehearsal(NamedTuple):
    """Loss and batch preparation of a run's step, to measure its time."""

    loss: Loss = pretraining_loss
    prepare: Callable[[Batch, int], Batch] = lambda batch, step: batch
    """Transforms the batch of a step before it is split."""


def measuring(minutes: float) -> str:
    """Return a note that the rate is being measured, which shows no progress."""
    least = WARM_SECONDS + RATE_SECONDS
    return f"measuring the rate for {least:g} s or more: how many steps {minutes:g} minutes hold"


def count_steps(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> int:
    """Return the optimiser steps of the run, from --epochs, --steps or --minutes."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return measured_steps(config, plan, minutes=config.minutes, model=model, how=how)
    return max(1, round(config.epochs * plan.batches_per_epoch))


def measured_steps(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    *,
    minutes: float,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> int:
    """Measure the rate on discarded steps and return the steps that fit into the minutes."""
    seconds = step_seconds(config, plan, model, how)
    return max(1, int(minutes * 60 / seconds))


def step_seconds(
    config: PretrainConfig | FinetuneConfig,
    plan: BatchPlan,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
    *,
    warm: float = WARM_SECONDS,
    least: int = RATE_STEPS,
    seconds: float = RATE_SECONDS,
) -> float:
    """Measure the seconds of a step on discarded steps; the mean over a run's stages.

    Args:
        config: configuration of the run.
        plan: defines the batches.
        model: the model before the run; not changed.
        how: loss and preparation of a batch.
        warm: warm-up in seconds, at least one step.
        least: minimum number of measured steps of each stage.
        seconds: minimum time of each stage.
    """
    with throw_away_steps(config, model, how) as step:

        def rate_of(stage: Stage) -> float:
            def take(number: int) -> None:
                step(training_batch(stage.plan, number), number)

            times_a_second(lambda _: take(0), least=1, seconds=warm)
            return times_a_second(take, least=least, seconds=seconds)

        return sum(stage.share / rate_of(stage) for stage in stages(config, plan))


@contextmanager
def throw_away_steps(
    config: PretrainConfig | FinetuneConfig,
    model: nn.Module,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> Iterator[Callable[[Batch, int], object]]:
    """Yield a function (batch, step number) that runs a training step on a copy of the model."""
    # A copy: without a warm-up, even the first step changes the weights.
    state = new_state(copy.deepcopy(model), config)
    step = OptimiserStep(loss=how.loss, config=config, device=device_of(state))
    rate = rate_at(0, num_steps=100, config=config, batch=config.batch)
    with step.side_by_side():
        yield lambda batch, number: step(state, how.prepare(batch, number), lr=rate)


def times_a_second(
    act: Callable[[int], object],
    *,
    least: int,
    seconds: float,
    finish: Callable[[], object] = lambda: None,
) -> float:
    """Call `act` with 0, 1, 2 and so on, and return the calls per second.

    Args:
        act: function to time.
        least: minimum number of calls, unless they take more than ten times `seconds`.
        seconds: minimum time.
        finish: waits for asynchronous work.
    """
    began, done, passed = time.perf_counter(), 0, 0.0
    while (done < least or passed < seconds) and passed <= 10 * seconds:
        act(done)
        done += 1
        passed = time.perf_counter() - began
    finish()
    return done / (time.perf_counter() - began)


def few_pictures(
    config: PretrainConfig, device: torch.device, *, flops: float | None = None
) -> PretrainConfig:
    """Lower the batch of a measured step: a CPU would take minutes for a large one.

    The number of parallel micro-batches stays that of the whole batch.

    Args:
        config: configuration of the run.
        device: any device but a CPU measures the whole batch.
        flops: upper bound of the operations of a step, of at least two images; none: a default
            that takes a fraction of a second.
    """
    if device.type != "cpu":
        return config
    views = config.views_per_decode
    wanted = max(
        2, views, int((flops or _PROBED_FLOPS) // step_flops(config.model, config.objective))
    )
    pictures = min(config.batch, wanted // views * views)
    micro_batch = config.fixed_micro_batch or config.batch
    side_by_side = min(torch.get_num_threads(), -(-config.batch // micro_batch))
    micro_batch = min(micro_batch, -(-pictures // side_by_side))
    return dataclasses.replace(config, batch=pictures, micro_batch=micro_batch)


def others_waiting() -> float:
    """Return the number of other runnable threads per processor."""
    processors = os.cpu_count() or 1
    return max(0.0, os.getloadavg()[0] - torch.get_num_threads()) / processors


def saved_bytes(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, *, half: bool = False
) -> float:
    """Measure the bytes that the forward pass of a training step keeps for the backward pass.

    Args:
        model: the model, on the CPU; sizes are the same on every device.
        images: B C H W of the stored type.
        noise: B L.
        half: whether to run under autocast to bf16, which also keeps a copy of each weight.

    Returns:
        Bytes per image, without parameters.
    """

    def compute() -> Tensor:
        return model(model.normalize(images), noise=noise).loss  # type: ignore[no-any-return]

    return kept_for_backward(model, compute, half=half) / len(images)


def kept_for_backward(
    model: nn.Module, compute: Callable[[], Tensor], *, half: bool = False
) -> int:
    """Measure the bytes that a forward pass keeps for the backward pass, without parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, half):
        loss = compute()
    assert loss.grad_fn is not None  # saved tensors are still alive, so addresses are unique
    return sum(kept.values())
