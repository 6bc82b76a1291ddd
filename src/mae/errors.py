"""What can go wrong, said in one line: what was wrong, what was got, what to do.

MaeError                 exit code 2: the user must change something
├── ConfigError          a recipe, option or configuration key that cannot be used
├── ShapeError           a tensor or picture size the model cannot take
├── DataError            a folder, picture or array that cannot be read
├── WeightsError         weights that do not fit, or are not what they claim
├── CheckpointError      exit code 1: no usable checkpoint is left in a run
├── RankError            exit code 1: another process of a job on several ranks is lost
└── TrainingError        exit code 1: the training itself failed
"""

from __future__ import annotations

from typing import ClassVar

INSTALL = "pip install --force-reinstall mae-vision"
"""Installs what is missing of the libraries that everything needs."""


class MaeError(ValueError):
    """Base of every error a user can cause or mend."""

    exit_code: ClassVar[int] = 2


class ConfigError(MaeError):
    """A recipe, option or configuration key that cannot be used."""


class ShapeError(MaeError):
    """A tensor or picture size that the model cannot take."""


class DataError(MaeError):
    """A folder, picture or array that cannot be read."""


class WeightsError(MaeError):
    """Weights that do not fit the model, or are not what they claim to be."""


class CheckpointError(MaeError):
    """No usable checkpoint is left in a run."""

    exit_code: ClassVar[int] = 1


class RankError(MaeError):
    """Another process of a job on several ranks is lost."""

    exit_code: ClassVar[int] = 1


class TrainingError(MaeError):
    """The training itself failed: non-finite losses, a full disk, too many broken pictures."""

    exit_code: ClassVar[int] = 1
