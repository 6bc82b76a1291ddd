"""The run directory: where things lie, who may go on, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

from mae.errors import ConfigError, TrainingError

FREE_ON_RESUME = frozenset(
    ("workers", "device", "threads", "micro_batch", "log_every_steps", "save_every_steps", "keep")
)
"""Fields of a configuration that another start of the same run may change."""

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of a run."""

    path: Path

    @property
    def record(self) -> Path:
        """Resolved configuration, command, versions, git state, data, number of steps."""
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Folder of the finished model, as other tools want it."""
        return self.path / "weights"

    @property
    def results(self) -> Path:
        """What probes and evaluations found."""
        return self.path / "results.json"

    @property
    def bad_files(self) -> Path:
        """Unreadable pictures, once each."""
        return self.path / "bad-files.tsv"

    @property
    def report(self) -> Path:
        """The report as one page."""
        return self.path / "report.html"

    @property
    def pictures(self) -> Path:
        """Folder of the drawings made during the run."""
        return self.path / "pictures"

    @property
    def lock(self) -> Path:
        """Lock that the one writer holds."""
        return self.path / "lock"


class OpenedRun(NamedTuple):
    """A run directory that may be written to."""

    rundir: RunDir
    record: dict[str, Any]
    """The record in force: on a resume the first one, with the configuration as asked now."""
    resumed: bool


def make_run_folder(path: Path) -> RunDir:
    """Make the folder of a run, or take one that is empty or a run's.

    Raises:
        ConfigError: if it cannot be made, or holds something that is no run; it is left as it is.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(p.name for p in path.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be a run folder: {error.strerror}; choose another with --out"
        ) from error
    # The lock and unfinished files are what a start leaves that died before its first record.
    strange = [name for name in names if name != "lock" and not name.startswith(".tmp-")]
    if strange and "run.json" not in names:
        raise ConfigError(
            f"{path}: is not empty and not a run: holds {_some(strange, ', ')}, no run.json; "
            "choose a new folder with --out"
        )
    return RunDir(path)


def open_run(path: Path, *, record: Mapping[str, Any]) -> OpenedRun:
    """Begin a run, or go on with an unfinished one of the same configuration and data.

    The caller holds the lock, so that nobody else begins it meanwhile.

    Args:
        path: the folder of the run.
        record: what the run is; of its keys `config` (nested fields), `data` (with `fingerprint`
            and `count`) and `finished` are looked at. Fields in `FREE_ON_RESUME` may differ.

    Raises:
        ConfigError: for a folder that holds something else, a finished run, another
            configuration (the difference, field by field) or other data.
    """
    rundir = make_run_folder(path)
    for folder in (rundir.path, rundir.weights):
        sweep_litter(folder)
    asked = json.loads(json.dumps(record))
    stored = read_record(path)
    if stored is not None:
        _require_same_run(path, stored, asked)
        asked = {**stored, "config": asked["config"]}
    if asked != stored:
        try:
            write_json_atomic(rundir.record, asked)
        except TrainingError as error:
            raise ConfigError(str(error)) from error
    return OpenedRun(rundir, asked, resumed=stored is not None)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of the run in a folder; None if no run was begun there.

    Raises:
        ConfigError: if the record is damaged.
    """
    file = RunDir(path).record
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        return {**record, "config": {**record["config"]}, "data": {**record["data"]}}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{file}: is no record of a run, or damaged; restore it, or choose another folder "
            "with --out"
        ) from None


def _require_same_run(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    if stored.get("finished"):
        raise ConfigError(
            f"{path}: this run is finished; to train on from its weights use --init {path} with "
            "another folder as --out"
        )
    differences = config_differences(stored["config"], asked["config"])
    if differences:
        raise ConfigError(
            f"{path}: holds a run of another configuration: {_some(differences, '; ')}; ask for "
            "the same, or choose another folder with --out"
        )
    before, now = stored["data"], asked["data"]
    if before["fingerprint"] != now["fingerprint"]:
        raise ConfigError(
            f"{path}: the data is not that of the run: {_data_change(before, now)}; put it back "
            "as it was, or begin a new run with --out"
        )


def _data_change(before: dict[str, Any], now: dict[str, Any]) -> str:
    more = now["count"] - before["count"]
    if not more:
        return f"still {now['count']:,} pictures, but their names or sizes differ"
    change = f"{more:,} more" if more > 0 else f"{-more:,} fewer"
    return f"files were {'added' if more > 0 else 'removed'}: {now['count']:,} pictures, {change}"


def config_differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Describe each field that differs and must not, nested fields by dotted name."""
    before, now = _flat(stored), _flat(asked)
    return [
        f"{name}: run has {before.get(name, 'nothing')!r}, asked {now.get(name, 'nothing')!r}"
        for name in {**before, **now}
        if name not in FREE_ON_RESUME
        and (name in before, before.get(name)) != (name in now, now.get(name))
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _some(items: list[str], separator: str) -> str:
    more = len(items) - _MAX_NAMED
    return separator.join(items[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def write_json_atomic(path: Path, value: object) -> None:
    """Write a JSON file that readers, and whoever comes after a crash, see whole or not at all.

    Raises:
        TrainingError: if the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: cannot be written: {error.strerror}; make room, or check who may write there"
        ) from error


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_litter(folder: Path) -> None:
    """Delete what interrupted writes and deletions left; the caller holds the run's lock.

    `.tmp-*` and `.del-*` are ours, `.tmp??????` is what safetensors renames to its target.
    """
    for path in [*folder.glob(".tmp*"), *folder.glob(".del-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Name the versions that a result may depend on, without importing any of them."""
    names = ("mae-vision", "torch", "numpy", "pillow", "simplejpeg", "safetensors")
    return {"python": python_version()} | {name: metadata.version(name) for name in names}


def git_state() -> dict[str, object] | None:
    """Name the commit of the checkout one works in and whether it has changes; None elsewhere."""

    def git(*arguments: str) -> str:
        finished = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return finished.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
