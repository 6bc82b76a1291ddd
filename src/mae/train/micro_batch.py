"""Automatic micro-batch size, from a memory formula and by trial on a GPU."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mae.config.kinds import AnyRunConfig
from mae.config.run import FinetuneConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.errors import ConfigError
from mae.planning.estimate import Estimate, split_evenly
from mae.planning.hardware import this_machine
from mae.runs.state import TrainState
from mae.train.measure import StepRecipe
from mae.train.resolve import device_of
from mae.train.session import RunInProgress
from mae.train.step import OptimiserStep

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container


def choose_micro_batch(
    run: RunInProgress,
    state: TrainState,
    plan: BatchPlan,
    recipe: StepRecipe = StepRecipe(),  # noqa: B008
) -> int | None:
    """Return the images of one pass of a run; for "auto" as many as fit, kept in its record.

    A resumed run uses the same number: another order of summation changes the last bits.

    Returns:
        The number of images; None for the whole batch.

    Raises:
        ConfigError: if not a single image fits.
    """
    config, record = run.config, run.record
    if config.micro_batch != "auto":
        return config.micro_batch
    if "micro_batch" not in record:
        device, process = device_of(state), run.ranks.process
        free = free_bytes(device)
        if device.type == "cpu":
            free /= process.local_world_size
        largest = largest_by_formula(config, state.model, free, process.world_size)
        # A trial that fails on one rank would leave the others in it, where they gather the model.
        if device.type == "cuda" and not state.is_sharded:
            fits = partial(fits_here, config, state, training_batch(plan, 0), recipe)
            # Try one image even where the formula says that none fits.
            start = split_evenly(plan.own_batch, max(1, largest))
            largest = largest_that_fits(fits, start=start)
        if not largest:
            raise ConfigError(
                "micro_batch: not one image fits beside the network and the batch of "
                f"{plan.own_batch:,} on {device}; use --checkpoint-every 1 or a smaller --batch"
            )
        record["micro_batch"] = min(run.ranks.all_gather(split_evenly(plan.own_batch, largest)))
        run.write_record()
    found: int = record["micro_batch"]
    passes = math.ceil(plan.own_batch / found)
    run.progress.note(f"micro-batch: {found:,} fit, {passes:,} passes a step")
    return found


def largest_by_formula(
    config: AnyRunConfig,
    model: nn.Module,
    memory_bytes: float,
    ranks: int = 1,
) -> int:
    """Estimate how many images fit into one pass of a rank; 0: none.

    Args:
        config: configuration of the run.
        model: the network, for its parameters.
        memory_bytes: memory of the device available to a step.
        ranks: processes that divide a batch.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    machine = this_machine(config.device)._replace(memory_bytes=memory_bytes, ranks=ranks)
    return Estimate(config, machine, config.batch, trained, frozen).largest_micro_batch


def largest_that_fits(fits: Callable[[int], bool], *, start: int) -> int:
    """Halve the number of images until it fits; 0 if not even one does."""
    count = start
    while count and not fits(count):
        count //= 2
    return count


def fits_here(
    config: AnyRunConfig,
    state: TrainState,
    stored: Batch,
    recipe: StepRecipe,
    count: int,
) -> bool:
    """Return whether a micro-batch of `count` images fits, by a trial forward and backward pass.

    The state does not change. Memory for gradients and moments is allocated where the state has
    none yet.

    Args:
        config: configuration of the run.
        state: training state before a step.
        stored: the images of a whole step, on the host.
        recipe: loss and preparation of a batch.
        count: images of the micro-batch.
    """
    device, optimizer = device_of(state), state.optimizer
    step = OptimiserStep(loss=recipe.loss, config=config, device=device)
    averaged = isinstance(config, FinetuneConfig) and config.ema is not None
    room: list[object] = []
    try:
        if not optimizer.state:
            trained = [p for p in state.model.parameters() if p.requires_grad]
            room += [torch.empty_like(p) for p in trained for _ in range(3 if averaged else 2)]
        room.append(stored.to(device))  # the next batch, copied during the step
        part = next(recipe.prepare(stored.to(device), 0).split(count))
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
