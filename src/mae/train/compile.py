"""Compile the loss with torch.compile, with a fallback to eager execution."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import torch

from mae.config.detect import DetectConfig
from mae.config.run import FitConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.runs.state import TrainState
from mae.train.measure import StepRecipe
from mae.train.resolution_schedule import stages
from mae.train.resolve import device_of
from mae.train.session import RunInProgress
from mae.train.step import Loss, OptimiserStep


def compiled_loss(
    run: RunInProgress, state: TrainState, plan: BatchPlan, recipe: StepRecipe
) -> Loss:
    """Return the loss of a run, compiled if requested and possible.

    The loss function is compiled, not the model, so parameter names do not change. The shapes of
    the run are static: the sizes of its micro-batches, two at most, are compiled and tried here,
    before the first step. If the compiler is missing or fails, one line is printed and the run
    continues in eager mode. CUDA graphs are not used: a replay would overwrite the gradients that
    micro-batches accumulate.

    Args:
        run: the run.
        state: training state before a step; its gradients are discarded.
        plan: defines the batches.
        recipe: loss, preparation of a batch, and micro-batch.
    """
    config, device = run.config, device_of(state)
    if not is_compiled(config, device):
        return recipe.loss
    if state.is_sharded or isinstance(config, DetectConfig):
        reason = "with --strategy fsdp" if state.is_sharded else "for detectors"
        run.progress.note(f"compile: off {reason}")
        return recipe.loss
    # Compilations of earlier runs in this process count towards torch's recompile limit.
    torch.compiler.reset()
    try:
        # fullgraph: a graph break means fallback to eager, not partial compilation.
        loss: Loss = torch.compile(recipe.loss, fullgraph=True, dynamic=False)
        step = OptimiserStep(loss=loss, config=config, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compiler warnings are not actionable for the user
            for part in _parts(config, plan, recipe, device):
                step.rehearse(state.model, part)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # errors of the compiler, or a missing compiler program
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        run.progress.note(f"compile: failed, training without it: {reason[:200]}")
        return recipe.loss
    finally:
        state.optimizer.zero_grad(set_to_none=True)
    return loss


def is_compiled(config: FitConfig, device: torch.device) -> bool:
    """Return whether a run is compiled: as configured, by default on a GPU."""
    return device.type == "cuda" if config.compile is None else config.compile


def _parts(
    config: FitConfig, plan: BatchPlan, recipe: StepRecipe, device: torch.device
) -> Iterator[Batch]:
    """Yield a micro-batch of each micro-batch size and each image size of the run."""
    own = plan.own_batch
    whole = recipe.micro_batch or config.fixed_micro_batch or own
    for stage in stages(config, plan):
        for size in {min(whole, own), own % whole} - {0}:
            few = dataclasses.replace(stage.plan, batch=size, views_per_decode=1, share=(0, 1))
            yield recipe.prepare(training_batch(few, 0).to(device), 0)
