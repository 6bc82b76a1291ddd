"""Pre-training: a recipe and pictures in; a run directory with weights and a report out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mae.config import PretrainConfig
from mae.data.batch import Batch, BatchPlan, prepared
from mae.data.decode import PixelKind
from mae.data.loader import batches
from mae.data.randomness import Stream, uniform
from mae.data.source import Source
from mae.errors import ConfigError, TrainingError
from mae.fields import to_dict
from mae.jobs.inputs import Data, data_name, open_source
from mae.jobs.progress import Progress
from mae.jobs.setup import (
    batch_plan,
    choose_workers,
    count_steps,
    device_of,
    new_state,
    resolve,
)
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.recipes import find_config
from mae.report.page import write_report
from mae.report.reconstruction import save_progress_picture
from mae.train.checkpoint import NotSaved, latest_checkpoint, load_checkpoint, save_checkpoint
from mae.train.fit import Cadence, fit
from mae.train.guard import RunLock, Stopped, StopSignal
from mae.train.log import BadFiles, LogWriter
from mae.train.meter import Meter
from mae.train.rundir import (
    RunDir,
    git_state,
    make_run_folder,
    open_run,
    versions,
    write_json_atomic,
)
from mae.train.schedule import rate_at
from mae.train.state import TrainState
from mae.train.step import Metrics, OptimiserStep, pretraining_loss
from mae.weights.folder import save
from mae.weights.load import initial_model

DRAWINGS = 8  # drawings of the fixed pictures through a run
FIXED_PICTURES = 8
MOST_FAILED_SAVES = 3


class Run(NamedTuple):
    """A finished pre-training run."""

    path: Path
    config: PretrainConfig
    num_steps: int
    resumed: bool
    model: MaskedAutoencoder


def pretrain(
    recipe: str | PretrainConfig = "folder",
    *,
    data: Data,
    out: str | Path | None = None,
    init: str | Path | None = None,
    quiet: bool = False,
    command: Sequence[str] = (),
    based_on: str = "custom",
) -> Run:
    """Pre-train a masked autoencoder, or go on with an unfinished run of the same configuration.

    Args:
        recipe: name of a recipe, or a configuration.
        data: folder of pictures, array N H W (C), a `Source`, or "fashion-mnist" (built in).
        out: run directory; `runs/DATA-NAME` if none.
        init: weights or a run to start from; the run still begins at step 0.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "mae.pretrain: called again while a reader process was starting; put the call under "
            '`if __name__ == "__main__":`, or use workers=0'
        )
    named = recipe if isinstance(recipe, str) else based_on
    config = find_config(recipe, PretrainConfig) if isinstance(recipe, str) else recipe
    with StopSignal() as stop, Progress(quiet=quiet) as progress:
        source = open_source(data)
        config, kind = resolve(config, source, say=progress.note)
        # Not before the pictures are found readable: a mistyped folder leaves nothing behind.
        rundir = make_run_folder(Path("runs", data_name(data)) if out is None else Path(out))
        with RunLock(rundir.lock):
            opened = open_run(
                rundir.path,
                record={
                    "recipe": named,
                    "config": to_dict(config),
                    "command": list(command),
                    "data": _data_record(data, source, kind),
                    "init": None if init is None else str(init),
                    "versions": versions(),
                    "git": git_state(),
                    "finished": False,
                },
            )
            run = _Run(rundir, config, source, kind, opened.record, progress, stop)
            model = _run_to_the_end(run, init=init)
            return Run(rundir.path, config, opened.record["num_steps"], opened.resumed, model)


def _data_record(data: Data, source: Source, kind: PixelKind) -> dict[str, Any]:
    return {
        "path": str(Path(data).resolve()) if isinstance(data, str | Path) else data_name(data),
        "count": len(source),
        "fingerprint": source.fingerprint(),
        "kind": kind._asdict(),
    }


class _Run(NamedTuple):
    """What a run in progress consists of, besides its state."""

    rundir: RunDir
    config: PretrainConfig
    source: Source
    kind: PixelKind
    record: dict[str, Any]
    progress: Progress
    stop: StopSignal


def _run_to_the_end(run: _Run, *, init: str | Path | None) -> MaskedAutoencoder:
    """Load or begin, settle the number of steps, train, and write the weights and the report."""
    config, record, say = run.config, run.record, run.progress.note
    _set_threads(config, record)
    # Where to start from, in this order: the run's own checkpoint, --init, new weights.
    if init is None:
        model = create(config.model, seed=config.seed)
    else:
        model, lines = initial_model(Path(init), config.model, seed=config.seed)
        for line in lines:
            say(line)
    state = new_state(model, config)
    load_checkpoint(run.rundir.checkpoints, state, say=say)
    plan = batch_plan(config, run.source, run.kind)
    if "num_steps" not in record:
        record["num_steps"] = count_steps(config, plan, model)
        write_json_atomic(run.rundir.record, record)
    if state.step < record["num_steps"]:
        _train(run, state, plan)
    model = model.cpu().eval()
    save(model, run.rundir.weights, facts={k: record[k] for k in ("recipe", "data", "num_steps")})
    write_report(run.rundir.path)
    # Last of all: a start after a crash in between does the above once more.
    record["finished"] = True
    write_json_atomic(run.rundir.record, record)
    return model


def _set_threads(config: PretrainConfig, record: dict[str, Any]) -> None:
    """Use the threads asked for, else those the run began with: they are part of bitwise."""
    threads = config.threads or record.get("threads")
    if threads:
        torch.set_num_threads(threads)
    record["threads"] = torch.get_num_threads()


def _train(run: _Run, state: TrainState, plan: BatchPlan) -> None:
    config, rundir, num_steps = run.config, run.rundir, run.record["num_steps"]
    device = device_of(state)
    log = LogWriter(rundir.log, say=run.progress.note)
    log.truncate_after(state.step)
    meter, saver, witness = Meter(), _Saver(run), _Witness(run, log)

    def seen(batch: Batch, metrics: Metrics) -> None:
        meter.add(batch, metrics)
        witness.see(state, batch, metrics)

    def write_row(state: TrainState, metrics: Metrics) -> None:
        epoch = state.step / plan.batches_per_epoch
        log.append({"step": state.step, "epoch": epoch, **meter.row(metrics)})

    def show(state: TrainState, metrics: Metrics) -> None:
        run.progress.update(state.step, loss=metrics.loss, lr=metrics.lr)

    draw = _drawing(run, plan)
    cadences = (
        Cadence(1, show),
        Cadence(config.log_every_steps, write_row),
        Cadence(max(1, num_steps // DRAWINGS), lambda state, metrics: draw(state)),
        Cadence(config.save_every_steps, lambda state, metrics: saver.save(state)),
    )
    workers = choose_workers(config, run.source, device)
    run.progress.note(_summary(run, device, num_steps))
    run.progress.start(num_steps, at=state.step, images_per_step=config.batch)
    if state.step == 0:
        draw(state)
    try:
        fit(
            state,
            meter.timed(batches(plan, start=state.step, stop=num_steps, workers=workers)),
            OptimiserStep(loss=pretraining_loss, config=config, device=device),
            num_steps=num_steps,
            rate=lambda step: rate_at(step, num_steps=num_steps, config=config, batch=config.batch),
            cadences=cadences,
            seen=seen,
            stop=lambda: run.stop.requested is not None,
        )
    except TrainingError as error:
        raise TrainingError(f"{error}; {_last_good(rundir)}") from error
    if state.step < num_steps:
        assert run.stop.requested is not None
        saver.save_or_raise(state)
        raise Stopped(
            f"stopped at step {state.step} of {num_steps}; the same command goes on from there",
            exit_code=run.stop.requested,
        )


def _summary(run: _Run, device: torch.device, num_steps: int) -> str:
    config, (H, W) = run.config, run.config.model.image_size
    return (
        f"{len(run.source):,} pictures of {run.kind.channels} channels, {run.kind.dtype}, as "
        f"{H} x {W}; {num_steps:,} steps of {config.batch} on {device} in {config.precision}; "
        f"learning rate {config.optim.lr:g} per 256 pictures, "
        f"{config.optim.peak_lr(config.batch):g} at its peak"
    )


def _last_good(rundir: RunDir) -> str:
    path = latest_checkpoint(rundir.checkpoints)
    return f"last good checkpoint: {path}" if path else "there is no checkpoint yet"


class _Witness:
    """Write down skipped steps and broken pictures, and stop when too many are broken."""

    def __init__(self, run: _Run, log: LogWriter) -> None:
        self._run = run
        self._log = log
        self._bad_files = BadFiles(run.rundir.bad_files)

    def see(self, state: TrainState, batch: Batch, metrics: Metrics) -> None:
        if not metrics.finite:
            self._log.append({"step": state.step, "skipped": batch.ids.tolist()})
        for picture in batch.bad:
            if self._bad_files.add(picture.name, picture.reason):
                self._run.progress.note(f"unreadable: {picture.name}: {picture.reason}")
        most, there = self._run.config.max_bad, len(self._run.source)
        if len(self._bad_files) > most * there:
            raise TrainingError(
                f"pictures: {len(self._bad_files)} of {there} cannot be read, more than "
                f"{most:.0%}; see {self._run.rundir.bad_files}, or raise --max-bad"
            )


class _Saver:
    """Save checkpoints; a full disk is said and retried at the next cadence, three times."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._failed = 0

    def save(self, state: TrainState) -> None:
        try:
            self.save_or_raise(state)
            self._failed = 0
        except NotSaved as error:
            self._failed += 1
            if self._failed == MOST_FAILED_SAVES or state.step == self._run.record["num_steps"]:
                raise
            self._run.progress.note(f"{error}; training goes on")

    def save_or_raise(self, state: TrainState) -> None:
        save_checkpoint(self._run.rundir.checkpoints, state, extra={}, keep=self._run.config.keep)


def _drawing(run: _Run, plan: BatchPlan) -> Callable[[TrainState], None]:
    """Give the function that draws the same few pictures, under the same masks, as training goes.

    They are whole pictures spread over the data, read once.
    """
    count = min(FIXED_PICTURES, len(run.source))
    ids = np.linspace(0, len(run.source) - 1, count).astype(np.int64)
    shown = prepared(run.source, ids.tolist(), kind=run.kind, size=plan.size)
    kept = shown.ids.numpy()
    noise = uniform(plan.seed, 0, kept, stream=Stream.MASK, count=plan.num_patches)

    def draw(state: TrainState) -> None:
        if not len(kept):
            return
        path = run.rundir.pictures / f"step-{state.step:08d}.png"
        assert isinstance(state.model, MaskedAutoencoder)
        try:
            save_progress_picture(state.model, shown.images, torch.from_numpy(noise), path)
        except ConfigError as error:  # a drawing is no reason to end a training
            run.progress.note(str(error))

    return draw
