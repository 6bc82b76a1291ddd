"""Lifecycle of a training run: record, resume, log, checkpoints and finish."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mae.atomic import write_json_atomic
from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.readers import exit_if_reader
from mae.data.decoding.decode import PixelKind
from mae.data.sources.open import Data, data_name
from mae.data.sources.source import Source
from mae.errors import ConfigError, TrainingError
from mae.planning.hardware import choose_device, has_bf16
from mae.progress import Progress
from mae.runs.checkpoint import (
    NotSaved,
    latest_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from mae.runs.directory import OpenedRun, RunDir, differences, git_state, read_record, versions
from mae.runs.log import BadFiles, LogWriter, read_rows
from mae.runs.signals import FINISHING, StopSignal
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps, fit
from mae.train.measure import StepRecipe, count_steps, measuring
from mae.train.meter import Meter, peak_memory, state_bytes
from mae.train.resolve import ConfigT, device_of, settle_precision
from mae.train.schedule import fixed_rate_at, log_every, rate_at
from mae.train.step import Metrics, OptimiserStep
from mae.weights.formats.native import TENSORS

MOST_FAILED_SAVES = 3
_AS_BEGUN = ("log_every_steps", "keep", "keep_checkpoints")


class RunInProgress(NamedTuple):
    """A run in progress, without its training state."""

    rundir: RunDir
    config: PretrainConfig | FinetuneConfig
    source: Source
    kind: PixelKind
    record: dict[str, Any]
    progress: Progress
    stop: StopSignal


def refuse_in_readers(verb: str) -> None:
    """Refuse to start a run in a child process that is importing the main script.

    A reader process of this package exits silently; its parent reports the reason.

    Raises:
        ConfigError: in any other child process, with a fix.
    """
    exit_if_reader()
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            f"mae.{verb}: called again in a process that is starting and imports this script; put "
            'the call under `if __name__ == "__main__":`'
        )


def first_record(
    config: PretrainConfig | FinetuneConfig,
    *,
    recipe: str,
    command: Sequence[str],
    data: dict[str, Any],
    **more: object,
) -> dict[str, Any]:
    """Return the contents of run.json when a run begins."""
    return {
        "recipe": recipe,
        "config": to_dict(config),
        "command": list(command),
        "data": data,
        **more,
        "versions": versions(),
        "git": git_state(),
        "finished": False,
    }


def defaults_of(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Return default values for fields that the run.json of an older version lacks.

    `crop_pct` is the value given now: no training step depends on it.
    """
    plain = to_dict(type(config)())
    plain["model"]["crop_pct"] = config.model.crop_pct
    return plain


def data_record(
    data: Data, source: Source, kind: PixelKind, *, judged_on: Source | None = None
) -> dict[str, Any]:
    """Return the entry of run.json on the images; `judged_on` adds its fingerprint."""
    prints = [part.fingerprint() for part in (source, judged_on) if part is not None]
    return {
        "path": str(Path(data).resolve()) if isinstance(data, str | Path) else data_name(data),
        "count": len(source),
        "fingerprint": "-".join(prints),
        "kind": kind._asdict(),
    }


def settled(config: ConfigT, rundir: RunDir) -> ConfigT:
    """Take over the fields that a resumed run keeps from its start; the caller holds its lock.

    These are the precision, and the fields in `_AS_BEGUN` that are left at their defaults: a run
    of an earlier version keeps its log interval and its checkpoint settings. Checkpoints of a
    finished run that a crash left behind are removed.
    """
    begun = read_record(rundir.path)
    config = settle_precision(config, has_bf16=has_bf16(choose_device(config.device)), begun=begun)
    if begun is None:
        return config
    stored, usual = begun["config"], FitConfig()
    unasked = [name for name in _AS_BEGUN if getattr(config, name) == getattr(usual, name)]
    as_begun = {name: stored[name] for name in unasked if name in stored}
    config = dataclasses.replace(config, **as_begun)
    # Earlier versions kept checkpoints and did not record this.
    if begun.get("finished") and not stored.get("keep_checkpoints", True):
        _drop_checkpoints(config, rundir)
    return config


def _drop_checkpoints(config: FitConfig, rundir: RunDir) -> None:
    if not config.keep_checkpoints:
        remove_checkpoints(rundir.checkpoints)


def require_same_start(opened: OpenedRun, asked: Mapping[str, object], key: str) -> None:
    """Refuse a finished run that started from other weights than those given now.

    Raises:
        ConfigError: if they differ, with both.
    """
    if different := differences(*({key: r.get(key)} for r in (opened.record, asked))):
        raise ConfigError(
            f"{opened.rundir.path}: holds a finished run from other weights: {different}; choose "
            "another folder with --out"
        )


def settle_steps(run: RunInProgress, plan: BatchPlan, model: nn.Module, how: StepRecipe) -> int:
    """Return the steps of a run, fixed and recorded when it begins."""
    config, record = run.config, run.record
    if "num_steps" not in record:
        if config.minutes is not None:
            run.progress.note(measuring(config.minutes))
        record["num_steps"] = count_steps(config, plan, model, how)
        write_json_atomic(run.rundir.record, record)
    return int(record["num_steps"])


def finish(run: RunInProgress, model: nn.Module, *, written: nn.Module) -> None:
    """Verify the written weights, record the run as finished, then remove its checkpoints.

    After a crash before the record is written, a restart writes the weights again from the last
    checkpoint; after a later crash, it removes the remaining checkpoints.

    Args:
        run: the run; its weights are on the disk.
        model: the trained model, on the CPU.
        written: the model read back from the disk.

    Raises:
        TrainingError: if the weights read back differ from the model's.
    """
    found = written.state_dict()
    wrong = [n for n, t in model.state_dict().items() if not torch.equal(t, found[n])]
    if wrong:
        (run.rundir.weights / TENSORS).unlink(missing_ok=True)  # the last checkpoint is intact
        raise TrainingError(
            f"{run.rundir.weights}: {len(wrong)} tensors are not what was written, {wrong[:5]}; "
            "check the disk, and give the same command again, which writes them from the last "
            "checkpoint"
        )
    run.record["finished"] = True
    write_json_atomic(run.rundir.record, run.record)
    _drop_checkpoints(run.config, run.rundir)


def set_threads(config: PretrainConfig | FinetuneConfig, record: dict[str, Any]) -> None:
    """Set the number of threads, as given or as the run began: results depend on it bitwise."""
    threads = config.threads or record.get("threads")
    if threads:
        torch.set_num_threads(threads)
    record["threads"] = torch.get_num_threads()


@contextmanager
def tf32_beside(half: str | None, device: torch.device) -> Iterator[None]:
    """On a GPU, use TF32 for float32 matrix products in a run in half precision.

    A run in float32 keeps full float32 products.
    """
    before = torch.get_float32_matmul_precision()
    rounded = half is not None and device.type == "cuda"
    torch.set_float32_matmul_precision("high" if rounded else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def train_run(
    run: RunInProgress,
    state: TrainState,
    step: OptimiserStep,
    feed: Iterable[Batch],
    *,
    batches_per_epoch: int,
    draw: EveryNSteps | None = None,
) -> None:
    """Train to the last step: log, save checkpoints, report unreadable images, stop on request.

    Args:
        run: its record holds the number of steps.
        state: training state to continue from.
        step: updates the parameters by one batch.
        feed: the batches from `state.step` on.
        batches_per_epoch: batches of an epoch, for the log.
        draw: callback that draws during training; the caller has drawn before the first step.

    Raises:
        TrainingError: if training cannot continue, with the last good checkpoint.
        Stopped: after a stop request, once the state is saved.
    """
    config, rundir, num_steps = run.config, run.rundir, run.record["num_steps"]
    log = LogWriter(rundir.log, say=run.progress.note)
    log.truncate_after(state.step)
    saver, witness = _Saver(run), _Witness(run, log)
    meter = Meter(read_rows(rundir.log), step=state.step)
    device, began = device_of(state), state.step
    told = device.type != "cuda"
    if device.type == "cuda":  # exclude the memory of trial steps
        torch.cuda.reset_peak_memory_stats(device)

    def seen(batch: Batch, metrics: Metrics) -> None:
        meter.add(batch, metrics)
        witness.see(state, batch, metrics)

    def write_row(state: TrainState, metrics: Metrics) -> None:
        nonlocal told
        epoch = state.step / batches_per_epoch
        log.append({"step": state.step, "epoch": epoch, **meter.row(metrics)})
        if not told and state.step > began + 1:  # the first step has no moments before its update
            told = True
            run.progress.note(state_bytes(state).said(peak_memory()))

    def show(state: TrainState, metrics: Metrics) -> None:
        run.progress.update(state.step, loss=meter, lr=metrics.lr)

    callbacks = (
        EveryNSteps(1, show),
        EveryNSteps(config.log_every_steps or log_every(num_steps), write_row, first=True),
        *([] if draw is None else [draw]),
        EveryNSteps(config.save_every_steps, lambda state, metrics: saver.save(state)),
    )
    run.progress.note(_summary(run, device, num_steps))
    run.progress.start(num_steps, at=state.step, images_per_step=config.batch)
    run.stop.doing = FINISHING
    try:
        fit(
            state,
            meter.timed(feed),
            step,
            num_steps=num_steps,
            rate=lambda step: rate_at(step, num_steps=num_steps, config=config, batch=config.batch),
            fixed_rate=partial(fixed_rate_at, num_steps=num_steps, config=config),
            callbacks=callbacks,
            on_step_end=seen,
            stop=lambda: run.stop.requested is not None,
        )
    except TrainingError as error:
        raise TrainingError(f"{error}; {_last_good(rundir)}") from error
    witness.tell()
    if state.step < num_steps:
        saver.save_or_raise(state)
        raise run.stop.stopped(f"stopped at step {state.step:,} of {num_steps:,}")
    run.stop.doing = "the last step is done; writing the results"


def _summary(run: RunInProgress, device: torch.device, num_steps: int) -> str:
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
    """Log skipped steps and unreadable images, and stop when too many are unreadable."""

    def __init__(self, run: RunInProgress, log: LogWriter) -> None:
        self._run = run
        self._log = log
        self._bad_files = BadFiles(run.rundir.bad_files)

    def see(self, state: TrainState, batch: Batch, metrics: Metrics) -> None:
        if not metrics.finite:
            self._log.append({"step": state.step, "skipped": batch.ids.tolist()})
        for picture in batch.bad:
            if self._bad_files.add(picture.name, picture.reason):
                self._run.progress.note(f"unreadable: {picture.name}: {picture.reason}")
        for picture in batch.warned:
            self._bad_files.add_read(picture.name, picture.reason)
        most, there = self._run.config.max_bad, len(self._run.source)
        if len(self._bad_files) > most * there:
            raise TrainingError(
                f"pictures: {len(self._bad_files)} of {there} cannot be read, more than "
                f"{most:.0%}; see {self._run.rundir.bad_files}, or raise --max-bad"
            )

    def tell(self) -> None:
        """Report how many images were read with a warning."""
        if count := self._bad_files.read:
            said = f"{count:,} read with a warning; see {self._run.rundir.bad_files}"
            self._run.progress.note(said)


class _Saver:
    """Save checkpoints; a failed save is reported and retried at the next interval, three times."""

    def __init__(self, run: RunInProgress) -> None:
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
