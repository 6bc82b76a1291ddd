"""Pre-train a masked autoencoder from a recipe and images into a run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np

from mae.config.run import PretrainConfig
from mae.data.augment.crop import evaluation_view
from mae.data.batching.batch import BatchPlan, evaluation_batch
from mae.data.batching.loader import on_device
from mae.data.sources.open import Data, data_name, open_source
from mae.errors import ConfigError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.progress import Progress
from mae.recipes.catalogue import find_config
from mae.report.page import write_report
from mae.report.reconstruction import save_progress_picture
from mae.runs.checkpoint import load_checkpoint
from mae.runs.directory import OpenedRun, RunDir, make_run_folder, open_run
from mae.runs.log import read_rows
from mae.runs.signals import RunLock, StopSignal
from mae.runs.state import TrainState
from mae.train.compile import compiled_loss
from mae.train.fit import EveryNSteps
from mae.train.forecast import log_forecast
from mae.train.measure import StepRecipe
from mae.train.meter import losses, running_mean
from mae.train.micro_batch import choose_micro_batch
from mae.train.resolution_schedule import staged_batches
from mae.train.resolve import batch_plan, choose_workers, device_of, new_state, resolve
from mae.train.session import (
    RunInProgress,
    data_record,
    defaults_of,
    finish,
    first_record,
    refuse_in_readers,
    require_same_start,
    set_threads,
    settle_steps,
    settled,
    tf32_beside,
    train_run,
)
from mae.train.step import OptimiserStep, pretraining_loss
from mae.weights.formats.native import save
from mae.weights.given import Given
from mae.weights.initialize import initial_model
from mae.weights.load import open_model
from mae.weights.start_from import follow, require_init

DRAWINGS = 8  # drawings of the fixed images during a run
FIXED_PICTURES = 8


class Run(NamedTuple):
    """A finished pre-training run."""

    path: Path
    config: PretrainConfig
    num_steps: int
    resumed: bool
    """Whether the run existed before this call: it was resumed, or already finished."""
    model: MaskedAutoencoder
    loss: float
    """Mean over the last tenth of the steps; NaN where nothing was logged."""


def pretrain(
    recipe: str | PretrainConfig = "folder",
    *,
    data: Data,
    out: str | Path | None = None,
    init: str | Path | None = None,
    finished_too: bool = True,
    quiet: bool = False,
    command: Sequence[str] = (),
    based_on: str = "custom",
    **given: Unpack[Given],
) -> Run:
    """Pre-train a masked autoencoder, or resume a run of the same configuration and data.

    An unfinished run is resumed; a finished run is returned unchanged.

    Args:
        recipe: name of a recipe, or a configuration.
        data: folder of images, array N H W (C), a `Source`, or "fashion-mnist" (built in).
        out: run directory; `runs/DATA-NAME` if none.
        init: weights or a run to start from; the run still begins at step 0.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    refuse_in_readers("pretrain")
    named = recipe if isinstance(recipe, str) else based_on
    config = find_config(recipe, PretrainConfig) if isinstance(recipe, str) else recipe
    require_init(config, init, **given)
    followed = config.follow_weights
    stopping = StopSignal("", command=command)
    with stopping as stop, Progress(quiet=quiet) as progress:
        source = open_source(data, log=progress.note)
        pixels = None
        if init is not None and followed:
            config = follow(config, init, say=progress.note, **given)
            pixels = config.model.pixels
        config, kind = resolve(config, source, say=progress.note, known=pixels)
        # Only after the images proved readable: a mistyped folder leaves nothing behind.
        rundir = make_run_folder(Path("runs", data_name(data)) if out is None else Path(out))
        with RunLock(rundir.lock):
            config = settled(config, rundir)
            record = first_record(
                config,
                recipe=named,
                command=command,
                data=data_record(data, source, kind),
                init=None if init is None else str(init),
            )
            opened = open_run(
                rundir.path,
                record=record,
                defaults=defaults_of(config),
                finished_too=finished_too,
            )
            if opened.record["finished"]:
                require_same_start(opened, record, "init")
                return _ended(opened, config, _read(rundir))
            run = RunInProgress(rundir, config, source, kind, opened.record, progress, stop)
            model = _run_to_the_end(run, init=init, followed=followed, **given)
            return _ended(opened, config, model)


def _read(rundir: RunDir) -> MaskedAutoencoder:
    return open_model(rundir.weights).model


def _ended(opened: OpenedRun, config: PretrainConfig, model: MaskedAutoencoder) -> Run:
    """Return the result of a finished run."""
    return Run(
        path=opened.rundir.path,
        config=config,
        num_steps=opened.record["num_steps"],
        resumed=opened.resumed,
        model=model,
        loss=running_mean(losses(read_rows(opened.rundir.log))),
    )


def _run_to_the_end(
    run: RunInProgress, *, init: str | Path | None, followed: bool, **given: Unpack[Given]
) -> MaskedAutoencoder:
    """Load or create the state, set the number of steps, train, write weights and report."""
    config, record, say = run.config, run.record, run.progress.note
    assert isinstance(config, PretrainConfig)
    set_threads(config, record)
    # Where to start from, in this order: the run's own checkpoint, --init, new weights.
    if init is None:
        model = create(config.model, objective=config.objective, seed=config.seed)
    else:
        model, lines = initial_model(
            init,
            config.model,
            objective=config.objective,
            seed=config.seed,
            init_channels=config.init_channels,
            followed=followed,
            **given,
        )
        for line in lines:
            say(line)
    state = new_state(model, config)
    load_checkpoint(run.rundir.checkpoints, state, say=say)
    if state.step < record.get("num_steps", math.inf):
        with tf32_beside(config.half, device_of(state)):
            _train(run, state)
    model = model.cpu().eval()
    save(model, run.rundir.weights, facts={k: record[k] for k in ("recipe", "data", "num_steps")})
    write_report(run.rundir.path)
    finish(run, model, written=_read(run.rundir))
    return model


def _train(run: RunInProgress, state: TrainState) -> None:
    plan, how = batch_plan(run.config, run.source, run.kind), StepRecipe(pretraining_loss)
    fixed = replace(run.config, micro_batch=choose_micro_batch(run, state, plan, how))
    run = run._replace(config=fixed)
    how = how._replace(loss=compiled_loss(run, state, plan, how))
    config, device = run.config, device_of(state)
    num_steps, draw = settle_steps(run, plan, state.model, how), _drawing(run, plan)
    workers = choose_workers(config, plan, device, say=run.progress.note)
    if state.step == 0:
        if not run.progress.quiet:  # the forecast measures for a few seconds
            log_forecast(run)
        draw(state)
    feed = staged_batches(config, plan, start=state.step, num_steps=num_steps, workers=workers)
    train_run(
        run,
        state,
        OptimiserStep(loss=how.loss, config=config, device=device),
        on_device(feed, device),
        batches_per_epoch=plan.batches_per_epoch,
        draw=EveryNSteps(max(1, num_steps // DRAWINGS), lambda state, metrics: draw(state)),
    )


def _drawing(run: RunInProgress, plan: BatchPlan) -> Callable[[TrainState], None]:
    """Return a function that draws the same few images, under the same masks, during training.

    The images are whole, spread evenly over the data, and read once.
    """
    count = min(FIXED_PICTURES, len(run.source))
    ids = np.linspace(0, len(run.source) - 1, count).astype(np.int64)
    view = partial(evaluation_view, crop_pct=run.config.model.crop_pct)
    shown = evaluation_batch(run.source, ids.tolist(), kind=run.kind, size=plan.size, view=view)
    kept = shown.ids.numpy()
    noise = plan.noise(kept, epoch=0)

    def draw(state: TrainState) -> None:
        if not len(kept):
            return
        path = run.rundir.pictures / f"step-{state.step:08d}.png"
        assert isinstance(state.model, MaskedAutoencoder)
        try:
            save_progress_picture(state.model, shown.images, noise, path)
        except ConfigError as error:  # a failed drawing must not end the training
            run.progress.note(str(error))

    return draw
