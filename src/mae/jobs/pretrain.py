"""Pre-train a masked autoencoder from a recipe and images into a run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mae.config.run import PretrainConfig
from mae.data.augment.crop import evaluation_view
from mae.data.batching.batch import BatchPlan, evaluation_batch
from mae.data.sources.open import Data, open_source
from mae.errors import ConfigError
from mae.evaluation.health_check import HealthCheck
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.report.notebook import run_html, shown
from mae.report.page import write_report
from mae.report.reconstruction import EXTREMES, save_progress_image
from mae.report.tables import plain, value_rows
from mae.runs.directory import RunDir
from mae.runs.log import final_values, read_columns, read_rows
from mae.runs.state import TrainState
from mae.train.call import open_call
from mae.train.choice import choose_config
from mae.train.fit import EveryNSteps
from mae.train.measure import StepRecipe
from mae.train.meter import losses, running_mean
from mae.train.resolve import batch_plan
from mae.train.session import RunInProgress, finish, restore
from mae.train.sharding import whole_model
from mae.train.step import Metrics, pretraining_loss
from mae.train.trainer import train
from mae.weights.formats.native import save
from mae.weights.given import Given, path_of
from mae.weights.load import open_model
from mae.weights.start_from import initial_model, require_init

FIXED_IMAGES = 8
"""Number of images drawn during a run."""


@shown
class Run(NamedTuple):
    """A finished pre-training run; it stands for its path wherever weights are taken."""

    path: Path
    config: PretrainConfig
    num_steps: int
    resumed: bool
    """Whether the run existed before this call: it was resumed, or already finished."""
    model: MaskedAutoencoder
    loss: float
    """Mean over the last tenth of the steps; NaN where nothing was logged."""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> dict[str, NDArray[Any]]:
        """The log and the health checks as columns, see `read_columns`."""
        return read_columns(RunDir(self.path).log, RunDir(self.path).health)

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each column of the log; `loss` as above, times summed up."""
        return final_values(self.log) | {"loss": self.loss}

    def values(self) -> dict[str, object]:
        """Return the values to print."""
        files = RunDir(self.path)
        paths = {"run": self.path, "weights": files.weights, "report": files.report}
        return {**paths, "steps": self.num_steps, "loss": self.loss, "resumed": self.resumed}

    def html(self) -> Iterator[Element]:
        """Yield the facts of the run and its last reconstructions."""
        return run_html(self.path, value_rows(plain(self.values())))


def pretrain(
    recipe: str | PretrainConfig = "folder",
    *,
    data: Data,
    out: str | Path | None = None,
    init: str | os.PathLike[str] | None = None,
    resume_from: int | None = None,
    skip_steps: int = 0,
    finished_too: bool = True,
    quiet: bool = False,
    command: Sequence[str] = (),
    based_on: str = "custom",
    kept: Collection[str] | None = None,
    **fields: Any,
) -> Run:
    """Pre-train a masked autoencoder, or resume a run of the same configuration and data.

    An unfinished run is resumed; a finished run is returned unchanged. The processes of a job
    started by torchrun divide each batch; rank 0 writes.

    Args:
        recipe: name of a recipe, or a configuration.
        data: folder of images, array N H W (C), a `Source`, or "fashion-mnist" (built in).
        out: run directory; `runs/DATA-NAME` if none.
        init: weights or a finished run to start from; the run still begins at step 0.
        resume_from: step of an older checkpoint of an unfinished run to go back to; the same
            call again resumes from the newest.
        skip_steps: number of steps after it whose batches are not trained on; they count as steps.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        kept: names of the fields of `recipe` that the user set, where it is made from the recipe
            folder, which chooses the others by the images.
        fields: fields of the recipe to change, by the names of the options with `_` for `-`
            (`epochs=5, model="vit-ti/16", lr=1e-3, optim={"weight_decay": 0.1}`); and what the
            weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    init = None if init is None else path_of(init, name="init")
    with open_call(
        pretrain, PretrainConfig, recipe, fields, data=data, weights=init, out=out, suffix="",
        resume_from=resume_from, skip_steps=skip_steps, finished_too=finished_too, quiet=quiet,
        command=command, based_on=based_on, kept=kept,
    ) as call:  # fmt: skip
        config, progress = call.config, call.progress
        require_init(config, init, **call.given)
        source = open_source(data, log=progress.note)
        choose = partial(choose_config, config, source, kept=call.kept, begun=call.begun)
        choice = partial(choose, from_weights=init is not None, log=progress.note)
        config = call.ranks.on_main(choice)
        session = call.open_run(config, source, start={"init": init})
        with session as run:
            assert isinstance(run.config, PretrainConfig)
            if run.record["finished"]:
                model = open_model(run.rundir.weights).model
            else:
                followed = config.follow_weights
                model = _train(run, _new_model(run, init, followed=followed, **call.given))
            return Run(
                path=run.rundir.path,
                config=run.config,
                num_steps=run.record["num_steps"],
                resumed=run.resumed,
                model=model,
                loss=running_mean(losses(read_rows(run.rundir.log))),
            )


def _new_model(
    run: RunInProgress, init: str | Path | None, *, followed: bool, **given: Unpack[Given]
) -> MaskedAutoencoder:
    """Create the model of a new run, from initial weights if there are any."""
    config = run.config
    assert isinstance(config, PretrainConfig)
    if init is None:
        return create(config.model, objective=config.objective, seed=config.seed)
    model, notes = initial_model(
        init,
        config.model,
        objective=config.objective,
        seed=config.seed,
        init_channels=config.init_channels,
        followed=followed,
        **given,
    )
    for note in notes:
        run.progress.note(note)
    return model


def _train(run: RunInProgress, model: MaskedAutoencoder) -> MaskedAutoencoder:
    """Train the model from the newest checkpoint to the last step, write weights and report.

    Returns:
        The trained model, on the CPU; `model` itself unless ranks hold parts of it.
    """
    state = restore(run, model)
    plan = batch_plan(run.config, run.source, run.kind, run.ranks.process)
    draw = _drawing(run, plan) if run.ranks.is_main_process else None
    check = _checking(run, plan, step=state.step) if run.ranks.is_main_process else None
    train(run, state, plan, StepRecipe(pretraining_loss), draw=draw, check=check)
    whole = whole_model(run, state)
    assert isinstance(whole, MaskedAutoencoder)
    whole.cpu().eval()

    def write() -> None:
        facts = {name: run.record[name] for name in ("recipe", "data", "num_steps")}
        save(whole, run.rundir.weights, facts=facts)
        write_report(run.rundir.path)
        finish(run, whole, written=open_model(run.rundir.weights).model)

    run.ranks.on_main(write)
    return whole


def _checking(run: RunInProgress, plan: BatchPlan, *, step: int) -> EveryNSteps:
    """Return the check of a run's health, which at the end draws its worst and best images."""
    check = HealthCheck(run, plan, step=step)

    def call(state: TrainState, metrics: Metrics) -> None:
        check(state, metrics)
        if state.step == run.record["num_steps"]:
            _draw(run, state, *check.extremes(), name=EXTREMES)

    return EveryNSteps(check.every, call, first=True)


def _drawing(run: RunInProgress, plan: BatchPlan) -> Callable[[TrainState], None]:
    """Return a function that draws the same few images, under the same masks, during training.

    The images are whole, spread evenly over the data, and read once.
    """
    count = min(FIXED_IMAGES, len(run.source))
    ids = np.linspace(0, len(run.source) - 1, count).astype(np.int64)
    view = partial(evaluation_view, crop_pct=run.config.model.crop_pct)
    shown = evaluation_batch(run.source, ids.tolist(), kind=run.kind, size=plan.size, view=view)
    kept = shown.ids.numpy()
    noise = plan.noise(kept, epoch=0)

    def draw(state: TrainState) -> None:
        _draw(run, state, shown.images, noise, name=f"step-{state.step:08d}.png")

    return draw


def _draw(
    run: RunInProgress, state: TrainState, images: Tensor, noise: Tensor, *, name: str
) -> None:
    """Draw reconstructions into the folder of a run; a failure must not end the training."""
    assert isinstance(state.model, MaskedAutoencoder)
    if not len(images):
        return
    try:
        save_progress_image(state.model, images, noise, run.rundir.images / name)
    except ConfigError as error:
        run.progress.note(str(error))
