"""Automatic micro-batch size, from a memory formula and by trial on a GPU."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mae.atomic import write_json_atomic
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.errors import ConfigError
from mae.model.costs import FLOAT32, HALF, classifier_bytes, kept_bytes, recomputed_bytes
from mae.planning.estimate import evenly, fitting
from mae.runs.state import TrainState
from mae.train.measure import Rehearsal
from mae.train.resolve import device_of
from mae.train.session import RunInProgress
from mae.train.step import OptimiserStep

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container


def settle_micro_batch(
    run: RunInProgress,
    state: TrainState,
    plan: BatchPlan,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> RunInProgress:
    """Replace a micro-batch of "auto" by a number and store it in the run's record.

    A resumed run uses the same number: another order of summation changes the last bits.

    Raises:
        ConfigError: if not a single image fits.
    """
    config, record = run.config, run.record
    if config.micro_batch != "auto":
        return run
    if "micro_batch" not in record:
        record["micro_batch"] = _largest(config, state, plan, how)
        write_json_atomic(run.rundir.record, record)
    found = record["micro_batch"]
    passes = math.ceil(config.batch / found)
    run.progress.note(f"micro-batch: {found:,} fit, {passes:,} passes a step")
    return run._replace(config=dataclasses.replace(config, micro_batch=found))


def _largest(
    config: PretrainConfig | FinetuneConfig, state: TrainState, plan: BatchPlan, how: Rehearsal
) -> int:
    device = device_of(state)
    guess = fitting_by_formula(config, state.model, device, memory_bytes=free_bytes(device))
    largest: int | None = guess
    if device.type == "cuda":
        fits = partial(fits_here, config, state, training_batch(plan, 0), how)
        # Try one image even where the formula says that none fits.
        largest = largest_that_fits(fits, start=evenly(config.batch, max(1, guess)))
    if not largest:
        raise ConfigError(
            f"micro_batch: not one picture fits beside the network and the batch of "
            f"{config.batch:,} on {device}; use --checkpoint-every 1, a smaller --batch or another "
            "network"
        )
    return evenly(config.batch, largest)


def fitting_by_formula(
    config: PretrainConfig | FinetuneConfig,
    model: nn.Module,
    device: torch.device,
    *,
    memory_bytes: float,
) -> int:
    """Estimate how many images fit into one pass from the shapes of the network; 0: none.

    Args:
        config: configuration of the run.
        model: the network; the device already holds at least its weights.
        device: device of the model.
        memory_bytes: memory of the device available to a step.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    # Weight, gradient, two moments, optional average; and the half-precision copy of the weight.
    averaged = isinstance(config, FinetuneConfig) and config.ema is not None
    each = (5 if averaged else 4) * FLOAT32 + (0 if config.half is None else HALF)
    stored, picture = _picture_bytes(config, on_cpu=device.type == "cpu")
    return fitting(
        config.batch,
        memory_bytes=memory_bytes,
        held_bytes=trained * each + frozen * FLOAT32 + config.batch * stored,
        picture_bytes=picture,
        threads=1 if device.type != "cpu" or config.compile else torch.get_num_threads(),
    )


def _picture_bytes(config: PretrainConfig | FinetuneConfig, *, on_cpu: bool) -> tuple[int, int]:
    """Count the bytes of an image stored on the device, and of one in the forward pass."""
    model, every = config.model, config.checkpoint_every
    values = model.num_patches * model.patch_values
    how = {"half": config.half is not None, "on_cpu": on_cpu}
    # A GPU also holds the next batch.
    stored = values * np.dtype(model.pixels.dtype).itemsize * (1 if on_cpu else 2)
    if isinstance(config, FinetuneConfig):
        # The whole batch is normalised and mixed before it is split.
        picture = classifier_bytes(model, **how, checkpoint_every=every)
        return stored + 2 * values * FLOAT32, picture
    kept = kept_bytes(model, config.objective, **how, checkpoint_every=every) + values * FLOAT32
    if every:
        kept += recomputed_bytes(model, config.objective, **how, checkpoint_every=every)
    return stored, kept


def largest_that_fits(fits: Callable[[int], bool], *, start: int) -> int | None:
    """Halve the number of images until it fits; None if not even one does."""
    count = start
    while count:
        if fits(count):
            return count
        count //= 2
    return None


def fits_here(
    config: PretrainConfig | FinetuneConfig,
    state: TrainState,
    stored: Batch,
    how: Rehearsal,
    count: int,
) -> bool:
    """Return whether a micro-batch of `count` images fits, by a trial forward and backward pass.

    The state does not change. Memory for gradients and moments is allocated where the state has
    none yet.

    Args:
        config: configuration of the run.
        state: training state before a step.
        stored: the images of a whole step, on the host.
        how: loss and preparation of a batch.
        count: images of the micro-batch.
    """
    device, optimizer = device_of(state), state.optimizer
    plain = dataclasses.replace(config, micro_batch=count)
    step = OptimiserStep(loss=how.loss, config=plain, device=device)
    averaged = isinstance(config, FinetuneConfig) and config.ema is not None
    room: list[object] = []
    try:
        if not optimizer.state:
            trained = [p for p in state.model.parameters() if p.requires_grad]
            room += [torch.empty_like(p) for p in trained for _ in range(3 if averaged else 2)]
        room.append(stored.to(device))  # the next batch, copied during the step
        part = next(how.prepare(stored.to(device), 0).split(count))
        for _ in range(2):  # the second time with the gradients of the first
            step.rehearse(state.model, part)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        optimizer.zero_grad(set_to_none=True)
        room.clear()
        free()


def free() -> None:
    """Collect garbage and release unused cached memory of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> float:
    """Return the available memory of a device in bytes; on a CPU including reclaimable caches."""
    if device.type == "cuda":
        # Memory reserved by torch's allocator is available to this process.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    try:
        return min(free, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no limit
        return free
