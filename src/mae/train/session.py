"""A run in progress: what pre-training and fine-tuning share from the first record to the last."""

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

from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.readers import leave_if_reader
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
from mae.runs.directory import (
    OpenedRun,
    RunDir,
    differences,
    git_state,
    read_record,
    versions,
    write_json_atomic,
)
from mae.runs.log import BadFiles, LogWriter, read_rows
from mae.runs.signals import FINISHING, StopSignal
from mae.runs.state import TrainState
from mae.train.fit import Cadence, fit
from mae.train.meter import Meter, peak_memory, state_bytes
from mae.train.resolve import (
    ConfigT,
    Rehearsal,
    count_steps,
    device_of,
    measuring,
    settle_precision,
)
from mae.train.schedule import fixed_rate_at, log_every, rate_at
from mae.train.step import Metrics, OptimiserStep
from mae.weights.formats.native import TENSORS

MOST_FAILED_SAVES = 3
_AS_BEGUN = ("log_every_steps", "keep", "keep_checkpoints")


class RunInProgress(NamedTuple):
    """What a run in progress consists of, besides its state."""

    rundir: RunDir
    config: PretrainConfig | FinetuneConfig
    source: Source
    kind: PixelKind
    record: dict[str, Any]
    progress: Progress
    stop: StopSignal


def refuse_in_readers(verb: str) -> None:
    """Refuse to start a run in a process that is importing the script which started it.

    A reader of ours ends quietly: the process that started it says why.

    Raises:
        ConfigError: with the cure, in a process that others started.
    """
    leave_if_reader()
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
    """Give what run.json holds when a run begins."""
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
    """Give what the fields stand for that the run.json of an older version lacks: defaults.

    Of the view in evaluation, which no step of training depends on, what is asked for now.
    """
    plain = to_dict(type(config)())
    plain["model"]["crop_pct"] = config.model.crop_pct
    return plain


def data_record(
    data: Data, source: Source, kind: PixelKind, *, judged_on: Source | None = None
) -> dict[str, Any]:
    """Give what run.json says of the pictures, the fingerprint of those judged on as well."""
    prints = [part.fingerprint() for part in (source, judged_on) if part is not None]
    return {
        "path": str(Path(data).resolve()) if isinstance(data, str | Path) else data_name(data),
        "count": len(source),
        "fingerprint": "-".join(prints),
        "kind": kind._asdict(),
    }


def settled(config: ConfigT, rundir: RunDir) -> ConfigT:
    """Settle what a run takes from its beginning, if it has begun; the caller holds its lock.

    That is the precision, and fields that nobody asks otherwise: a run of an earlier version
    keeps the rows of its log and the checkpoints that were usual then. Of a finished run, the
    checkpoints that a crash kept from being removed are removed.
    """
    begun = read_record(rundir.path)
    config = settle_precision(config, has_bf16=has_bf16(choose_device(config.device)), begun=begun)
    if begun is None:
        return config
    stored, usual = begun["config"], FitConfig()
    unasked = [name for name in _AS_BEGUN if getattr(config, name) == getattr(usual, name)]
    as_begun = {name: stored[name] for name in unasked if name in stored}
    config = dataclasses.replace(config, **as_begun)
    # Earlier versions kept them, and said nothing of it.
    if begun.get("finished") and not stored.get("keep_checkpoints", True):
        _drop_checkpoints(config, rundir)
    return config


def _drop_checkpoints(config: FitConfig, rundir: RunDir) -> None:
    if not config.keep_checkpoints:
        remove_checkpoints(rundir.checkpoints)


def require_same_start(opened: OpenedRun, asked: Mapping[str, object], key: str) -> None:
    """Refuse a finished run that started from other weights than are asked for now.

    Raises:
        ConfigError: with both.
    """
    if different := differences(*({key: r.get(key)} for r in (opened.record, asked))):
        raise ConfigError(
            f"{opened.rundir.path}: holds a finished run from other weights: {different}; choose "
            "another folder with --out"
        )


def settle_steps(run: RunInProgress, plan: BatchPlan, model: nn.Module, how: Rehearsal) -> int:
    """Give the steps of a run, which are fixed when it begins and recorded."""
    config, record = run.config, run.record
    if "num_steps" not in record:
        if config.minutes is not None:
            run.progress.note(measuring(config.minutes))
        record["num_steps"] = count_steps(config, plan, model, how)
        write_json_atomic(run.rundir.record, record)
    return int(record["num_steps"])


def finish(run: RunInProgress, model: nn.Module, *, written: nn.Module) -> None:
    """Record that a run is finished, last of all; then its checkpoints have served.

    A start after a crash before the record writes the weights once more, from the last
    checkpoint; one after it finds a finished run and removes what is left of the checkpoints.

    Args:
        run: its weights are on the disk.
        model: what came out, on the CPU.
        written: the same, read back.

    Raises:
        TrainingError: if what was read is not what was written.
    """
    found = written.state_dict()
    wrong = [n for n, t in model.state_dict().items() if not torch.equal(t, found[n])]
    if wrong:
        (run.rundir.weights / TENSORS).unlink(missing_ok=True)  # the last checkpoint is right
        raise TrainingError(
            f"{run.rundir.weights}: {len(wrong)} tensors are not what was written, {wrong[:5]}; "
            "check the disk, and give the same command again, which writes them from the last "
            "checkpoint"
        )
    run.record["finished"] = True
    write_json_atomic(run.rundir.record, run.record)
    _drop_checkpoints(run.config, run.rundir)


def set_threads(config: PretrainConfig | FinetuneConfig, record: dict[str, Any]) -> None:
    """Use the threads asked for, else those the run began with: they are part of bitwise."""
    threads = config.threads or record.get("threads")
    if threads:
        torch.set_num_threads(threads)
    record["threads"] = torch.get_num_threads()


@contextmanager
def tf32_beside(half: str | None, device: torch.device) -> Iterator[None]:
    """On a GPU, round the factors of float32 products to TF32 where the forward is in half.

    A run in float32 stays what it says.
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
    draw: Cadence | None = None,
) -> None:
    """Train to the last step: log, save, witness what is broken, stop when asked to.

    Args:
        run: its record holds the number of steps.
        state: where it stands.
        step: updates the parameters by one batch.
        feed: the batches from `state.step` on.
        batches_per_epoch: for the log.
        draw: something to draw as training goes, which the caller has done before the first step.

    Raises:
        TrainingError: if it cannot go on, with the last good checkpoint.
        Stopped: when asked to stop, after saving the state.
    """
    config, rundir, num_steps = run.config, run.rundir, run.record["num_steps"]
    log = LogWriter(rundir.log, say=run.progress.note)
    log.truncate_after(state.step)
    saver, witness = _Saver(run), _Witness(run, log)
    meter = Meter(read_rows(rundir.log), step=state.step)
    device, began = device_of(state), state.step
    told = device.type != "cuda"
    if device.type == "cuda":  # what was only tried is no part of the run
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

    cadences = (
        Cadence(1, show),
        Cadence(config.log_every_steps or log_every(num_steps), write_row, first=True),
        *([] if draw is None else [draw]),
        Cadence(config.save_every_steps, lambda state, metrics: saver.save(state)),
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
            cadences=cadences,
            seen=seen,
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
    """Write down skipped steps and broken pictures, and stop when too many are broken."""

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
        """Say how many images were read with a warning."""
        if count := self._bad_files.read:
            said = f"{count:,} read with a warning; see {self._run.rundir.bad_files}"
            self._run.progress.note(said)


class _Saver:
    """Save checkpoints; a full disk is said and retried at the next cadence, three times."""

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
