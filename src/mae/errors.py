"""Exception classes of mae, with the exit codes of the command line.

Each message is one line: what was wrong, what was found, what to do.

MaeError                 exit code 2: the user must change something
├── ConfigError          a recipe, option or configuration key that cannot be used
├── ShapeError           a tensor or image size the model does not accept
├── DataError            a folder, image or array that cannot be read
├── WeightsError         weights that do not fit, or are not what they claim
├── CheckpointError      exit code 1: no usable checkpoint is left in a run
├── RankError            exit code 1: another process of a distributed job is lost
└── TrainingError        exit code 1: the training itself failed

Stopped                  exit code 75 or 130: stopped on request; not an error
"""

from __future__ import annotations

import signal
from functools import partial
from typing import ClassVar

INSTALL = "pip install --force-reinstall mae-vision"
"""Command that reinstalls the package with its required dependencies."""


class MaeError(ValueError):
    """Base class of the errors that a user can cause or fix."""

    exit_code: ClassVar[int] = 2


class ConfigError(MaeError):
    """A recipe, option or configuration key that cannot be used."""


class ShapeError(MaeError):
    """A tensor or image size that the model does not accept."""


class DataError(MaeError):
    """A folder, image or array that cannot be read."""


class WeightsError(MaeError):
    """Weights that do not fit the model, or are not what they claim to be."""


class CheckpointError(MaeError):
    """No usable checkpoint is left in a run."""

    exit_code: ClassVar[int] = 1


class RankError(MaeError):
    """Another process of a distributed job is lost."""

    exit_code: ClassVar[int] = 1


class TrainingError(MaeError):
    """The training itself failed: non-finite losses, a full disk, too many broken images."""

    exit_code: ClassVar[int] = 1


REQUEUE = 75
"""Exit code after SIGTERM or SIGUSR1: the state is saved and the job can be requeued
(EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, with the state saved (128 + SIGINT, as in shells)."""
STOP_CODES = {signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE, signal.SIGINT: INTERRUPTED}
"""Exit code of a job by the signal that stopped it."""
SAME_REQUEST_S = 0.2
"""Seconds in which a repeated signal is the same request: `timeout` signals its child and then the
child's process group. Nobody presses Ctrl-C twice that fast."""


class Stopped(Exception):
    """The run stopped on request, with its state saved."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return partial(Stopped, exit_code=self.exit_code), self.args
