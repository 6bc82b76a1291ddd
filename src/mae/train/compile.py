"""Forward and backward compiled, where a compiler is there and does it; else as they are."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import torch

from mae.config.run import FitConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.runs.state import TrainState
from mae.train.resolution_schedule import stages
from mae.train.resolve import Rehearsal, device_of
from mae.train.session import RunInProgress
from mae.train.step import Loss, OptimiserStep


def compiled_loss(run: RunInProgress, state: TrainState, plan: BatchPlan, how: Rehearsal) -> Loss:
    """Give the loss of a run, compiled if that is asked for and works.

    The loss as a function is compiled, not the model, whose names and weights stay its own. The
    shapes are those of the run, so the sizes of its micro-batches, two at most, are compiled and
    tried here, before the first step: a compiler that is missing or fails is one line, and nothing
    is lost. No CUDA graphs: their outputs are overwritten by the next replay, and with them the
    gradients that micro-batches add up.

    Args:
        run: its micro-batch is settled.
        state: before a step; its gradients are thrown away.
        plan: what its batches are made by.
        how: the loss, and what is done to a batch before.
    """
    config, device = run.config, device_of(state)
    if not is_compiled(config, device):
        return how.loss
    # What earlier runs of the process compiled counts against the most that torch compiles.
    torch.compiler.reset()
    try:
        # A part that could not be compiled would be a surprise: then rather all as it is.
        loss: Loss = torch.compile(how.loss, fullgraph=True, dynamic=False)
        step = OptimiserStep(loss=loss, config=config, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what compilers warn of is not the user's doing
            for part in _parts(config, plan, how, device):
                step.rehearse(state.model, part)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the compilers' own errors, and a program they cannot start
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        run.progress.note(f"compile: not done, the run goes on without it: {reason[:200]}")
        return how.loss
    finally:
        state.optimizer.zero_grad(set_to_none=True)
    return loss


def is_compiled(config: FitConfig, device: torch.device) -> bool:
    """Say whether a run would be: if asked for, or left open, on a GPU."""
    return device.type == "cuda" if config.compile is None else config.compile


def _parts(
    config: FitConfig, plan: BatchPlan, how: Rehearsal, device: torch.device
) -> Iterator[Batch]:
    """Make a micro-batch of each size that a step has, and of each size of its pictures."""
    whole = config.fixed_micro_batch or config.batch
    for stage in stages(config, plan):
        for size in {min(whole, config.batch), config.batch % whole} - {0}:
            few = dataclasses.replace(stage.plan, batch=size, views_per_decode=1)
            yield how.prepare(training_batch(few, 0).to(device), 0)
