"""Train a run from its state to the last step, as pre-training and fine-tuning do.

Settings that need the model and its device come first: micro-batch, compilation, number of steps,
reader processes. Then the loop of `fit` runs, with a log, checkpoints, progress and a check of
unreadable images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mae.data.batching.batch import Bad, Batch, BatchPlan
from mae.data.batching.loader import on_device
from mae.errors import INTERRUPTED, REQUEUE, TrainingError
from mae.runs.checkpoint import latest_checkpoint
from mae.runs.directory import RunDir
from mae.runs.log import BadFiles, LogWriter, read_rows
from mae.runs.signals import FINISHING
from mae.runs.state import TrainState
from mae.train.compile import compiled_loss
from mae.train.fit import MOST_BAD_IN_A_ROW, EveryNSteps, fit
from mae.train.forecast import log_forecast
from mae.train.measure import StepRecipe, count_steps
from mae.train.meter import Meter, memory_message, peak_memory, state_bytes
from mae.train.micro_batch import choose_micro_batch
from mae.train.resolution_schedule import staged_batches
from mae.train.resolve import device_of
from mae.train.saver import CheckpointSaver
from mae.train.schedule import fixed_rate_at, log_every, rate_at
from mae.train.session import RunInProgress
from mae.train.sharding import on_all_ranks, step_seconds
from mae.train.step import Metrics, OptimiserStep
from mae.train.workers import choose_workers

if TYPE_CHECKING:
    from mae.parallel.exchange import GradientExchange

DRAWINGS = 8
"""How often the images of `draw` are drawn during a run."""


def train(
    run: RunInProgress,
    state: TrainState,
    plan: BatchPlan,
    recipe: StepRecipe,
    *,
    draw: Callable[[TrainState], None] | None = None,
    check: EveryNSteps | None = None,
) -> None:
    """Train to the last step, unless the state is already there.

    Args:
        run: the run; the number of steps and the micro-batch are recorded when it begins.
        state: training state to continue from, updated in place.
        plan: defines the batches.
        recipe: loss and preparation of a batch.
        draw: for pre-training; called before the first step and `DRAWINGS` times during training.
        check: for pre-training; called as it says, after the row of the log. Both on rank 0 alone.

    Raises:
        TrainingError: if training cannot continue, with the last good checkpoint.
        Stopped: after a stop request, once the state is saved.
    """
    if state.step >= run.record.get("num_steps", math.inf):
        return
    device, log, process = device_of(state), run.progress.note, run.ranks.process
    is_main = process.is_main_process
    with tf32_beside(run.config.half, device):
        recipe = recipe._replace(micro_batch=choose_micro_batch(run, state, plan, recipe))
        recipe = recipe._replace(loss=compiled_loss(run, state, plan, recipe))
        num_steps = _resolve_steps(run, state, plan, recipe)
        workers = choose_workers(run.config, plan, device, log=log, process=process)
        if not is_main:
            draw = check = None
        if state.is_sharded:
            draw, check = on_all_ranks(run, draw, check)
        if state.step == 0:
            if is_main and not run.progress.quiet:  # the forecast measures for a few seconds
                log_forecast(run, state.model)
            if draw is not None:
                draw(state)
        batches = staged_batches(
            run.config,
            plan,
            start=state.step,
            num_steps=num_steps,
            workers=workers,
            log=log,
            # One of several ranks must not leave the others to wait for it.
            is_stopped=lambda: process.world_size == 1 and run.stop.requested is not None,
        )
        feed = enumerate(on_device(batches, device), start=state.step)
        prepared = (recipe.prepare(batch, step) for step, batch in feed)
        with (
            _exchange(run, state, plan, recipe) as exchange,
            CheckpointSaver(run, state) as saver,
        ):
            step = OptimiserStep(
                loss=recipe.loss,
                config=run.config,
                device=device,
                micro_batch=recipe.micro_batch,
                exchange=exchange,
            )
            if device.type == "cuda":  # exclude the memory of trial steps
                torch.cuda.reset_peak_memory_stats(device)
            callbacks = [] if check is None else [check]
            if draw is not None:
                often = max(1, num_steps // DRAWINGS)
                callbacks.append(EveryNSteps(often, lambda state, _: draw(state)))
            _fit(run, state, step, prepared, plan=plan, saver=saver, callbacks=callbacks)


def _exchange(
    run: RunInProgress, state: TrainState, plan: BatchPlan, recipe: StepRecipe
) -> AbstractContextManager[GradientExchange | None]:
    """Return what the ranks of a run exchange in a step; none in one process."""
    if run.ranks.process.world_size == 1:
        return nullcontext()
    how: dict[str, Any] = {
        "ranks": run.ranks,
        "requested": lambda: run.stop.requested,
        "stop_codes": (REQUEUE, INTERRUPTED),
    }
    if not state.is_sharded:
        from mae.parallel.ddp import ReplicatedExchange

        return ReplicatedExchange(state.model, recipe.loss, **how)
    from mae.parallel.fsdp import ShardedExchange

    size = recipe.micro_batch or run.config.fixed_micro_batch or plan.own_batch
    passes = max(run.ranks.all_gather(math.ceil(plan.own_batch / size)))
    return ShardedExchange(recipe.loss, passes=passes, **how)


def _resolve_steps(
    run: RunInProgress, state: TrainState, plan: BatchPlan, recipe: StepRecipe
) -> int:
    """Return the steps of a run, counted and recorded when it begins.

    With --minutes, the ranks measure their shares at the same time and the slowest decides. Where
    they hold parts of the model, they take the steps together.
    """
    config, record = run.config, run.record
    if "num_steps" not in record:
        measured = None
        if state.is_sharded:

            def measured() -> float:
                with _exchange(run, state, plan, recipe) as exchange:
                    assert exchange is not None
                    return step_seconds(run, state, plan, recipe, exchange)

        log = run.progress.note
        counted = count_steps(config, plan, state.model, recipe, log=log, measured=measured)
        record["num_steps"] = min(run.ranks.all_gather(counted))
        run.write_record()
    return int(record["num_steps"])


@contextmanager
def tf32_beside(half: str | None, device: torch.device) -> Iterator[None]:
    """On a GPU, use TF32 for the float32 matrix products of a run in half precision.

    A run in float32 keeps full float32 products.
    """
    before = torch.get_float32_matmul_precision()
    if half is not None and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _fit(
    run: RunInProgress,
    state: TrainState,
    step: OptimiserStep,
    batches: Iterable[Batch],
    *,
    plan: BatchPlan,
    saver: CheckpointSaver,
    callbacks: Sequence[EveryNSteps],
) -> None:
    """Run the loop: log, save checkpoints, report unreadable images, stop on request.

    Of several ranks, rank 0 alone writes, but for parts of the model; all of them stop after the
    same step.
    """
    config, num_steps, exchange = run.config, run.record["num_steps"], step.exchange
    rows = LogWriter(run.rundir.log, log=run.progress.note)
    if run.ranks.is_main_process:
        rows.truncate_after(state.step)
    monitor = BadSampleMonitor(run, rows, plan)
    meter = Meter(read_rows(rows.path), step=state.step, images_per_step=config.batch)
    # The first step has no moments before its update.
    memory_due = state.step + 2 if step.device.type == "cuda" else math.inf

    def on_step_end(batch: Batch, metrics: Metrics) -> None:
        run.ranks.step_done(state.step)
        meter.add(metrics)
        monitor.check(state, batch, metrics, anywhere=exchange is None or exchange.reports > 0)
        saver.poll()

    def write_row(state: TrainState, metrics: Metrics) -> None:
        nonlocal memory_due
        epoch = state.step / plan.batches_per_epoch
        rows.append({"step": state.step, "epoch": epoch, **meter.row(metrics)})
        if state.step >= memory_due:
            memory_due = math.inf
            run.progress.note(memory_message(state_bytes(state), peak_memory()))

    def show(state: TrainState, metrics: Metrics) -> None:
        run.progress.update(state.step, loss=meter, lr=metrics.lr)

    callbacks = [
        EveryNSteps(1, show),
        EveryNSteps(config.log_every_steps or log_every(num_steps), write_row, first=True),
        *callbacks,
        EveryNSteps(config.save_every_steps, lambda state, _: saver.save(state)),
    ]
    if not run.ranks.is_main_process:  # all ranks gather and save the parts of a model
        callbacks = callbacks[2:] if state.is_sharded else []
    run.progress.note(_summary(run, step.device))
    run.progress.start(num_steps, at=state.step, images_per_step=config.batch)
    run.stop.doing = FINISHING
    try:
        fit(
            state,
            meter.timed(batches),
            step,
            num_steps=num_steps,
            rate=partial(rate_at, num_steps=num_steps, config=config, batch=config.batch),
            fixed_rate=partial(fixed_rate_at, num_steps=num_steps, config=config),
            callbacks=callbacks,
            on_step_end=on_step_end,
            stop=lambda: _requested(run, exchange) is not None,
        )
    except TrainingError as error:
        raise TrainingError(f"{error}; {_last_good(run.rundir)}{_way_round(run, state)}") from error
    run.ranks.steps_done()
    monitor.report()
    if state.step < num_steps:
        run.stop.requested = _requested(run, exchange)
        _save_and_record_stop(run, saver, state)
        raise run.stop.stopped(f"stopped at step {state.step:,} of {num_steps:,}")
    run.stop.doing = "the last step is done; writing the results"


def _save_and_record_stop(run: RunInProgress, saver: CheckpointSaver, state: TrainState) -> None:
    """Write all of it while the other ranks wait: their end may end this process."""

    def write() -> None:
        if not state.is_sharded:
            saver.save_or_raise(state)
        run.record_stop()

    if state.is_sharded:
        saver.save_or_raise(state)
    run.ranks.on_main(write)


def _requested(run: RunInProgress, exchange: GradientExchange | None) -> int | None:
    """Return the exit code of a requested stop; of several ranks, what they agreed on."""
    return run.stop.requested if exchange is None else exchange.stop


def _summary(run: RunInProgress, device: torch.device) -> str:
    config, (H, W) = run.config, run.config.model.image_size
    return (
        f"{len(run.source):,} images of {run.kind.channels} channels, {run.kind.dtype}, as "
        f"{H} x {W}; {run.record['num_steps']:,} steps of {config.batch} on {device} in "
        f"{config.precision}; learning rate {config.optim.lr:g} per 256 images, "
        f"{config.optim.peak_lr(config.batch):g} at its peak"
    )


def _last_good(rundir: RunDir) -> str:
    path = latest_checkpoint(rundir.checkpoints)
    return f"last good checkpoint: {path}" if path else "there is no checkpoint yet"


def _way_round(run: RunInProgress, state: TrainState) -> str:
    """Say how to skip the batches of five bad steps in a row, where steps remain after them."""
    path = latest_checkpoint(run.rundir.checkpoints)
    if (
        path is None
        or state.bad_in_a_row < MOST_BAD_IN_A_ROW
        or state.step >= run.record["num_steps"]
    ):
        return ""
    step = int(path.name.removeprefix("step-"))
    return f"; to skip those batches: --resume-from {step} --skip-steps {state.step - step}"


class BadSampleMonitor:
    """Log skipped steps and unreadable images, and stop when too many are unreadable.

    Of several ranks, rank 0 writes what all of them found.
    """

    def __init__(self, run: RunInProgress, rows: LogWriter, plan: BatchPlan) -> None:
        self._run = run
        self._rows = rows
        self._plan = plan
        if run.ranks.is_main_process:
            self._bad_files = BadFiles(run.rundir.bad_files)

    def check(self, state: TrainState, batch: Batch, metrics: Metrics, *, anywhere: bool) -> None:
        """Log the batch of a step.

        Args:
            state: after the step.
            batch: this rank's share.
            metrics: of the step.
            anywhere: whether any rank has images to report; the same on all ranks.

        Raises:
            TrainingError: if more than `max_bad` of the images are unreadable.
        """
        ranks = self._run.ranks
        if not metrics.finite and ranks.is_main_process:
            _, ids = self._plan.batch_ids(state.step - 1)
            skipped = np.tile(ids, self._plan.views_per_decode).tolist()
            self._rows.append({"step": state.step, "skipped": skipped})
        if anywhere:
            found = ranks.all_gather((batch.bad, batch.warned))
            bad, warned = (tuple(chain(*part)) for part in zip(*found, strict=True))
            ranks.on_main(lambda: self._add(bad, warned))

    def _add(self, bad: Iterable[Bad], warned: Iterable[Bad]) -> None:
        for image in bad:
            if self._bad_files.add(image.name, image.reason):
                self._run.progress.note(f"unreadable: {image.name}: {image.reason}")
        for image in warned:
            self._bad_files.add(image.name, image.reason, read=True)
        most, count = self._run.config.max_bad, len(self._run.source)
        if len(self._bad_files) > most * count:
            raise TrainingError(
                f"images: {len(self._bad_files)} of {count} cannot be read, more than {most:.0%}; "
                f"see {self._run.rundir.bad_files}, or raise --max-bad"
            )

    def report(self) -> None:
        """Report how many images were read with a warning."""
        if self._run.ranks.is_main_process and (count := self._bad_files.read):
            self._run.progress.note(
                f"{count:,} read with a warning; see {self._run.rundir.bad_files}"
            )
