"""Resume a run from an older checkpoint, past a window of batches that it does not train on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mae.atomic import write_json_atomic
from mae.data.types import Log
from mae.errors import ConfigError
from mae.runs.checkpoint import require_intact_checkpoint, set_aside_newer
from mae.runs.directory import RunDir
from mae.runs.log import LogWriter
from mae.runs.state import TrainState

_KEY = "windows"


class Rewind(NamedTuple):
    """A request to resume from the checkpoint of `step` and to skip the `skip` steps after it."""

    step: int
    skip: int


def rewind_of(folder: Path, resume_from: int | None, skip_steps: int) -> Rewind | None:
    """Check the two arguments of a verb; None if the run resumes from its newest checkpoint.

    Raises:
        ConfigError: for invalid numbers, or if the folder holds no run.
    """
    if skip_steps < 0:
        raise ConfigError(f"skip_steps: expected at least 0, got {skip_steps}")
    if resume_from is None:
        if skip_steps:
            raise ConfigError(
                f"skip_steps: got {skip_steps} without resume_from; give the step of a checkpoint "
                "as well"
            )
        return None
    if not RunDir(folder).record.exists():
        raise ConfigError(
            f"resume_from: got {resume_from}, but {folder} holds no run; drop it to begin one"
        )
    return Rewind(resume_from, skip_steps)


def rewind(rundir: RunDir, record: dict[str, Any], asked: Rewind, *, log: Log) -> None:
    """Make an unfinished run resume from an older checkpoint; the caller holds the run's lock.

    Newer checkpoints are renamed, log rows after the step are dropped, and the window is added to
    `record["windows"]`. A request that repeats the last window changes nothing, so that a command
    that is given again resumes from the newest checkpoint. Killed in between, the run resumes from
    the same checkpoint, and the same request completes the change.

    Raises:
        ConfigError: if there is no intact checkpoint of the step (lists those there are), or if
            no step would remain.
    """
    window = {"from": asked.step, "to": asked.step + asked.skip}
    if window.items() <= _last_window(record).items():
        log(f"steps {window['from']} to {window['to']}: skipped before; resuming as usual")
        return
    require_intact_checkpoint(rundir.checkpoints, asked.step)
    # A run that has a checkpoint has a number of steps.
    most = max(0, record["num_steps"] - asked.step - 1)
    if asked.skip > most:
        raise ConfigError(
            f"skip_steps: expected at most {most} after step {asked.step} of "
            f"{record['num_steps']}, got {asked.skip}"
        )
    aside = set_aside_newer(rundir.checkpoints, asked.step)
    for rows in (rundir.log, rundir.health):
        LogWriter(rows, log=log).truncate_after(asked.step)
    window["time"] = datetime.now(UTC).isoformat(timespec="seconds")  # type: ignore[assignment]
    record[_KEY] = [*record.get(_KEY, []), window]
    write_json_atomic(rundir.record, record)
    if aside:
        log(f"set aside until the next checkpoint: {', '.join(path.name for path in aside)}")


def skip_window(rundir: RunDir, record: Mapping[str, Any], state: TrainState, *, log: Log) -> None:
    """Move a loaded state past the last window of its run, if its step lies inside.

    Position and learning rate advance, parameters do not. The window becomes a row of the log.
    """
    window = _last_window(record)
    if not window.get("from", 0) <= state.step < window.get("to", 0):
        return
    log(f"skipping steps {state.step + 1} to {window['to']}")
    state.step, state.bad_in_a_row = window["to"], 0
    rows = LogWriter(rundir.log, log=log)
    rows.truncate_after(window["to"] - 1)
    rows.append({"step": window["to"], "window": window})


def _last_window(record: Mapping[str, Any]) -> dict[str, Any]:
    windows = record.get(_KEY) or [{}]
    return dict(windows[-1])
