"""Run directory: paths, creation, resume checks and the run record."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

from mae.atomic import remove_stale_temporaries, write_json_atomic
from mae.config.serialize import with_current_names
from mae.errors import ConfigError

Record = Mapping[str, Any]
"""Nested fields of a run, as JSON has them."""

FREE_ON_RESUME = frozenset(
    "workers device threads micro_batch checkpoint_every compile strategy log_every_steps "
    "save_every_steps async_save keep keep_checkpoints tiff_pages".split()
)
"""Configuration fields that may change on resume, or that are derived from others and were not
recorded by older versions."""

_MAX_NAMED = 5


class RunDir:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.log = path / "log.jsonl"
        self.health = path / "health.jsonl"
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights"
        self.results = path / "results.json"
        self.predictions = path / "predictions.csv"
        self.detections = path / "detections.json"
        self.mistakes = path / "mistakes.png"
        self.bad_files = path / "bad-files.tsv"
        self.report = path / "report.html"
        self.lock = path / "lock"

    @property
    def images(self) -> Path:
        """Folder of the images drawn during training; `pictures/` in runs of version 0.1."""
        older = self.path / "pictures"
        return older if older.is_dir() else self.path / "images"


class OpenedRun(NamedTuple):
    """The record of a run opened for writing."""

    record: dict[str, Any]
    """The new one; on resume the stored one, with the current configuration."""
    resumed: bool


def make_run_folder(path: Path) -> RunDir:
    """Create the folder of a run, or use one that is empty or already a run.

    Raises:
        ConfigError: if it cannot be created, or holds anything other than a run; it is left
            unchanged.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be a run folder: {error.strerror}; choose another with --out"
        ) from error
    # A start that died before writing its record leaves the lock and unfinished files; so does one
    # on several ranks, which also writes a marker for the others (`parallel.agreement`).
    ours = (".tmp-", ".ranks-")
    strange = [name for name in names if name != "lock" and not name.startswith(ours)]
    if strange and "run.json" not in names:
        raise ConfigError(f"{path}: holds {_some(strange)}, no run.json; choose another with --out")
    return RunDir(path)


def open_run(
    path: Path, *, record: Record, defaults: Record | None = None, finished_too: bool = False
) -> OpenedRun:
    """Start a run, or resume an unfinished one with the same configuration and data.

    The caller must hold the lock, so that no other process starts the run.

    Args:
        path: the folder of the run.
        record: description of the run. Only the keys `config` (nested fields), `data` (with
            `fingerprint` and `count`) and `finished` are checked. Fields in `FREE_ON_RESUME`
            may differ.
        defaults: nested fields that may be missing from a record written by an older version,
            with the values that applied then.
        finished_too: also open a finished run, leaving its record unchanged.

    Raises:
        ConfigError: for a folder that holds anything else, a finished run, another configuration
            (lists the differing fields) or other data.
    """
    rundir = make_run_folder(path)
    for folder in (path, rundir.weights):
        remove_stale_temporaries(folder)
    asked = json.loads(json.dumps(record))
    stored = read_record(path)
    if stored is not None:
        if stored.get("finished") and not finished_too:
            raise ConfigError(
                f"{path}: this run is finished; to train on, use --init {path} and another --out"
            )
        _require_same_run(path, stored, asked, defaults or {})
        if stored.get("finished"):
            return OpenedRun(stored, resumed=True)
        asked = {**stored, "config": asked["config"]}
    if asked != stored:
        write_json_atomic(rundir.record, asked)
    return OpenedRun(asked, resumed=stored is not None)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of the run in a folder; None if there is no run.

    Raises:
        ConfigError: if the record is damaged.
    """
    file = RunDir(path).record
    try:
        record = json.loads(file.read_bytes())
        config = with_current_names({**record["config"]})
        return {**record, "config": config, "data": {**record["data"]}}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not the record of a run"
        raise ConfigError(f"{file}: {reason}; repair it, or choose another --out") from None


def _require_same_run(path: Path, stored: Record, asked: Record, defaults: Record) -> None:
    # Check the data before the configuration, since pixel statistics may be derived from it.
    before, now = stored["data"], asked["data"]
    if before["fingerprint"] != now["fingerprint"]:
        more = now["count"] - before["count"]
        change = f"{abs(more):,} files {'added' if more > 0 else 'removed'}"
        change = change if more else "other names or sizes"
        counts = f"{now['count']:,} images, the run has {before['count']:,}"
        raise ConfigError(
            f"{path}: its data has changed: {change}, {counts}; restore it, or choose another --out"
        )
    before, now = (_compared(config) for config in (stored["config"], asked["config"]))
    older = _compared(json.loads(json.dumps(defaults)))
    if changed := differences({**older, **before}, now):
        raise ConfigError(
            f"{path}: holds a run of another configuration: {changed}; ask for the same, or choose "
            "another folder with --out"
        )


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that must not change, flattened to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in _compared(value).items()}
        elif name not in FREE_ON_RESUME:
            flat[name] = value
    return flat


def differences(run: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """Describe in one line where two mappings differ, naming the first few fields."""
    pairs = ((n, run.get(n, "nothing"), asked.get(n, "nothing")) for n in {**run, **asked})
    return _some([f"{name}: run has {a}, asked {b}" for name, a, b in pairs if a != b])


def _some(items: list[str]) -> str:
    more = len(items) - _MAX_NAMED
    return "; ".join(items[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that affect results, without imports."""
    names = ("mae-vision", "torch", "numpy", "pillow", "simplejpeg", "safetensors")
    return {"python": python_version()} | {name: metadata.version(name) for name in names}


def git_state() -> dict[str, object] | None:
    """Return the git commit of the working directory and whether it has changes; None outside."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
