"""The micro-batch that fits: by the formula of the plan, and on a GPU by trying it."""

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

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.errors import ConfigError
from mae.model.costs import FLOAT32, HALF, classifier_bytes, kept_bytes, recomputed_bytes
from mae.planning.estimate import evenly, fitting
from mae.runs.directory import write_json_atomic
from mae.runs.state import TrainState
from mae.train.resolve import Rehearsal, device_of
from mae.train.session import RunInProgress
from mae.train.step import OptimiserStep

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may take


def settle_micro_batch(
    run: RunInProgress,
    state: TrainState,
    plan: BatchPlan,
    how: Rehearsal = Rehearsal(),  # noqa: B008
) -> RunInProgress:
    """Turn a micro-batch of "auto" into a number, which the record keeps for a resume.

    A resume takes the same one, since sums in another order have other last bits.

    Raises:
        ConfigError: if not one picture fits.
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
        # Where the formula says that none does, trying tells.
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
    """Say how many pictures fit into a pass, by what the network's shapes keep; 0: none.

    Args:
        config: of the run.
        model: the network, of which the device has at least the weights already.
        device: where it is.
        memory_bytes: of the device, for all that a step takes.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    # The weight, its gradient, two moments, perhaps an average; and its copy in half precision.
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
    """Count a picture of the batch that lies on the device, and one that is computed."""
    model, every = config.model, config.checkpoint_every
    values = model.num_patches * model.patch_values
    how = {"half": config.half is not None, "on_cpu": on_cpu}
    # A GPU has the next batch as well.
    stored = values * np.dtype(model.pixels.dtype).itemsize * (1 if on_cpu else 2)
    if isinstance(config, FinetuneConfig):
        # The whole batch is normalised, and mixed with itself, before it is cut.
        picture = classifier_bytes(model, **how, checkpoint_every=every)
        return stored + 2 * values * FLOAT32, picture
    kept = kept_bytes(model, **how, checkpoint_every=every) + values * FLOAT32
    return stored, kept + (recomputed_bytes(model, **how, checkpoint_every=every) if every else 0)


def largest_that_fits(fits: Callable[[int], bool], *, start: int) -> int | None:
    """Halve a number of pictures until it fits; None if not even one does."""
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
    """Compute a micro-batch beside all that a step keeps, and forget it; say if there was room.

    Nothing of the state changes. The steps before the first have no gradients, and an optimiser
    that has not updated yet no moments: room for both is taken.

    Args:
        config: of the run.
        state: before a step.
        stored: the pictures of a whole step, on the host.
        how: what is done with them.
        count: pictures of the micro-batch.
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
        room.append(stored.to(device))  # the next batch, which is copied meanwhile
        part = next(how.prepare(stored.to(device), 0).split(count))
        for _ in range(2):  # the second time beside the gradients of the first
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
    """Give back to the card what nothing refers to."""
    gc.collect()
    torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> float:
    """Give the memory of a device that nothing else has: of a CPU, what caches give back too."""
    if device.type == "cuda":
        # What torch holds of it is ours as well.
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
