"""Lifecycle of a training run: lock, record, resume, finish."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mae.atomic import write_json_atomic
from mae.config.kinds import AnyRunConfig, ConfigT
from mae.config.run import FitConfig
from mae.config.serialize import to_dict
from mae.data.batching.readers import exit_if_reader
from mae.data.decoding.decode import PixelKind
from mae.data.sources.open import Data, data_name
from mae.data.sources.source import Source
from mae.errors import ConfigError, Stopped, TrainingError
from mae.parallel.processes import SINGLE_PROCESS, Communicator, ProcessInfo, require_agreement
from mae.planning.hardware import cores_per_rank
from mae.progress import Progress
from mae.runs.checkpoint import load_checkpoint, load_step, remove_checkpoints
from mae.runs.directory import (
    OpenedRun,
    RunDir,
    differences,
    git_state,
    make_run_folder,
    open_run,
    versions,
)
from mae.runs.rewind import Rewind, rewind, skip_window
from mae.runs.signals import RunLock, StopSignal
from mae.runs.state import TrainState
from mae.train.resolve import ResolvedRun, new_state
from mae.weights.formats.native import TENSORS


class RunInProgress(NamedTuple):
    """A run in progress, without its training state."""

    rundir: RunDir
    config: AnyRunConfig
    source: Source
    kind: PixelKind
    record: dict[str, Any]
    progress: Progress
    stop: StopSignal
    resumed: bool
    """Whether the run existed before: it was resumed, or is already finished."""
    ranks: Communicator = SINGLE_PROCESS
    """The processes that train it."""

    def write_record(self) -> None:
        """Write run.json; on rank 0 alone."""
        if self.ranks.is_main_process:
            write_json_atomic(self.rundir.record, self.record)

    def record_stop(self) -> None:
        """Record that the run stopped on request; on rank 0 alone."""
        self.record["state"] = "stopped"
        with suppress(ConfigError):  # a full disk must not hide the stop
            self.write_record()


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


@contextmanager
def open_session(
    folder: Path,
    resolved: ResolvedRun[ConfigT],
    progress: Progress,
    stop: StopSignal,
    *,
    recipe: str,
    data: dict[str, object],
    start: dict[str, object],
    finished_too: bool,
    back_to: Rewind | None = None,
    ranks: Communicator = SINGLE_PROCESS,
    **facts: object,
) -> Iterator[RunInProgress]:
    """Lock a run directory and start its run, or resume it; of several ranks, rank 0 does.

    Args:
        folder: the run directory; created only now, after the images proved readable.
        resolved: the run.
        progress: prints the notes of the resolved run.
        stop: holds the command for the record.
        recipe: name of the recipe, for the record.
        data: entry of the record on the images, see `data_record`.
        start: entry of the record on the initial weights; that of a finished run must be the same.
        finished_too: return a finished run, whose `record["finished"]` is true, instead of
            refusing it.
        back_to: resume from this older checkpoint; a finished run is refused.
        ranks: the processes that train it.
        facts: further entries of the record.

    Raises:
        ConfigError: for a folder that is no run, or a run of another configuration, other data or,
            if finished, other initial weights; if another process holds the lock; if a rank sees
            another folder or other images.
    """
    for note in resolved.notes:
        progress.note(note)
    config, rundir = resolved.config, RunDir(folder)
    with ExitStack() as held:

        def open_here() -> OpenedRun:
            make_run_folder(folder)
            held.enter_context(RunLock(rundir.lock))
            record = {
                "recipe": recipe,
                "config": to_dict(config),
                "command": list(stop.command),
                "data": data,
                **start,
                **facts,
                "versions": versions(),
                "git": git_state(),
                "finished": False,
            }
            opened = open_run(
                folder,
                record=record,
                defaults=_defaults_of(config),
                finished_too=finished_too and back_to is None,
            )
            if back_to is not None:
                rewind(rundir, opened.record, back_to, log=progress.note)
            if opened.record["finished"]:
                _require_same_start(folder, opened.record, start)
                # A crash may have left them; older versions kept them and did not record that.
                if not opened.record["config"].get("keep_checkpoints", True):
                    _remove_unneeded_checkpoints(config, rundir)
            else:
                _record_start(config, opened.record, ranks.process)
                write_json_atomic(rundir.record, opened.record)
            return opened

        facts_of_rank = {"command": " ".join(stop.command), "data": data["fingerprint"]}
        require_agreement(ranks, facts_of_rank, folder=folder)
        record, resumed = ranks.on_main(open_here)
        source, kind = resolved.source, resolved.kind
        run = RunInProgress(rundir, config, source, kind, record, progress, stop, resumed, ranks)
        if not record["finished"]:
            torch.set_num_threads(record["threads"])
        try:
            yield run
        except Stopped:
            if record.get("state") == "running":
                run.record_stop()
            raise


def data_record(
    data: Data, source: Source, kind: PixelKind, *, test: Source | None = None
) -> dict[str, object]:
    """Return the entry of run.json on the images; `test` adds the fingerprint of test images."""
    prints = [part.fingerprint() for part in (source, test) if part is not None]
    return {
        "path": str(Path(data).resolve()) if isinstance(data, str | Path) else data_name(data),
        "count": len(source),
        "fingerprint": "-".join(prints),
        "kind": kind._asdict(),
    }


def _defaults_of(config: AnyRunConfig) -> dict[str, Any]:
    """Return default values for fields that the run.json of an older version lacks.

    `crop_pct` is the value given now: no training step depends on it.
    """
    plain = to_dict(type(config)())
    plain["model"]["crop_pct"] = config.model.crop_pct
    return plain


def _require_same_start(folder: Path, stored: dict[str, Any], start: dict[str, object]) -> None:
    """Refuse a finished run that started from other weights than those given now."""
    if different := differences({key: stored.get(key) for key in start}, start):
        raise ConfigError(
            f"{folder}: holds a finished run from other weights: {different}; choose another "
            "folder with --out"
        )


def _remove_unneeded_checkpoints(config: FitConfig, rundir: RunDir) -> None:
    if not config.keep_checkpoints:
        remove_checkpoints(rundir.checkpoints)


def _record_start(config: FitConfig, record: dict[str, Any], process: ProcessInfo) -> None:
    """Record the number of ranks and threads of a start of a run.

    Results depend bitwise on the threads: as given, or as the last start on as many ranks had
    them. Several ranks divide the cores where they have one thread each, which torchrun sets.
    """
    sizes = record.setdefault("world_sizes", [])
    before = record.get("threads") if process.world_size == (sizes or [1])[-1] else None
    default = torch.get_num_threads()
    if process.world_size > 1 and default == 1:
        default = cores_per_rank(process)
    record["threads"] = config.threads or before or default
    record["state"] = "running"
    sizes.append(process.world_size)


def restore(run: RunInProgress, model: nn.Module) -> TrainState:
    """Return the state of the newest checkpoint, or that of a new run of the model.

    A state inside the window that the run skips is moved past it. Rank 0 chooses the checkpoint;
    the others load the same one.
    """
    state, folder = new_state(model, run.config, run.ranks), run.rundir.checkpoints

    def newest() -> tuple[int | None, int, int]:
        found = load_checkpoint(folder, state, log=run.progress.note)
        saved = None if found is None else state.step
        skip_window(run.rundir, run.record, state, log=run.progress.note)
        return saved, state.step, state.bad_in_a_row

    saved, step, bad_in_a_row = run.ranks.on_main(newest)
    if saved is not None and not run.ranks.is_main_process:
        load_step(folder, state, step=saved)
    state.step, state.bad_in_a_row = step, bad_in_a_row
    return state


def finish(run: RunInProgress, model: nn.Module, *, written: nn.Module) -> None:
    """Verify the written weights, record the run as finished, then remove its checkpoints.

    Of several ranks, rank 0 calls this.

    After a crash before the record is written, a restart writes the weights again from the last
    checkpoint; after a later crash, it removes the remaining checkpoints.

    Args:
        run: the run, with its weights on the disk.
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
    run.record.update(finished=True, state="done")
    run.write_record()
    _remove_unneeded_checkpoints(run.config, run.rundir)
