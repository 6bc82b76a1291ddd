"""Save and load training checkpoints atomically, verified by sha256.

    step-00001230/model.safetensors       parameters and buffers by name
                 /optimizer.safetensors   "exp_avg.NAME" ...: optimizer state by parameter
                 /state.json              step, bad_in_a_row, scaler, versions, caller's extras
                 /manifest.json           size and sha256 of the other three

That is a plain checkpoint; one of a state that ranks hold in parts has other files, see `sharded`.
A run folder may hold both, and a state that is sharded or not reads either. The caller must hold
the run's lock to save or load.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mae.atomic import fsync_folder, remove_stale_temporaries
from mae.data.types import Log
from mae.errors import CheckpointError, ConfigError, WeightsError
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.parallel.shards import Shard, shard_of
from mae.runs.directory import differences
from mae.runs.manifest import (
    STATE,
    Entry,
    NotSaved,
    complete,
    damage,
    delete,
    delete_oldest,
    make_temporary,
    not_saved,
    publish,
    read_state,
    set_aside,
    step_name,
    step_of,
    write_file,
)
from mae.runs.sharded import (
    METADATA,
    MODEL,
    OPTIMIZER,
    ShardedFiles,
    is_sharded_layout,
    save_sharded,
)
from mae.runs.state import Snapshot, TrainState, snapshot_of

__all__ = [
    "NotSaved", "latest_checkpoint", "load_checkpoint", "load_step", "remove_checkpoints",
    "read_sharded_model", "require_intact_checkpoint", "save_checkpoint", "set_aside_newer",
]  # fmt: skip

_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_FILES = {MODEL: _MODEL, OPTIMIZER: _OPTIMIZER}


def save_checkpoint(
    folder: Path,
    state: TrainState | Snapshot,
    *,
    extra: Mapping[str, object],
    keep: int,
    ranks: Communicator = SINGLE_PROCESS,
) -> Path:
    """Write the state durably as `folder/step-N` and delete the oldest checkpoints.

    A state that ranks hold in parts is written by all of them together, see `save_sharded`; any
    other by the process that calls this.

    Args:
        folder: checkpoint folder of the run; created if missing.
        state: not changed. A step that is already saved is not written again.
        extra: JSON values, returned by `load_checkpoint`.
        keep: number of checkpoints to keep, at least 2.
        ranks: the processes that hold a sharded state.

    Raises:
        NotSaved: if the disk is full or not writable; partial files are removed.
        TrainingError: if a parameter or buffer is not finite.
    """
    snapshot = state if isinstance(state, Snapshot) else snapshot_of(state)
    if snapshot.is_sharded:
        return save_sharded(folder, snapshot, extra=extra, keep=keep, ranks=ranks)
    path = folder / step_name(snapshot.step)
    if path.is_dir():
        return path
    snapshot.require_finite(snapshot.non_finite())
    # The headers and the two JSON files take much less than a megabyte.
    needed = snapshot.nbytes + 2**20
    try:
        _write(make_temporary(path, needed=needed), path, snapshot, extra)
    except OSError as error:
        raise not_saved(path, error.strerror or str(error), needed=needed) from error
    delete_oldest(folder, keep=keep)
    return path


def _write(temporary: Path, path: Path, snapshot: Snapshot, extra: Mapping[str, object]) -> None:
    files: dict[str, Entry] = {}
    for name, shards in ((_MODEL, snapshot.model), (_OPTIMIZER, snapshot.moments)):
        # As bytes: `save_file` sets file mode 0600, and the digest would need to read the file
        # again. One of the files at a time is in memory.
        content = save({tensor: shard.local for tensor, shard in shards.items()})
        files[name] = write_file(temporary / name, content)
    publish(temporary, path, files, snapshot, extra)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that no longer needs them, and the folder if then empty.

    What cannot be deleted is left: the caller has recorded that it is no longer needed.
    """
    delete(folder, folder.glob("step-*"))  # including damaged ones (.bad)
    with suppress(OSError):
        folder.rmdir()


def load_checkpoint(folder: Path, state: TrainState, *, log: Log) -> dict[str, Any] | None:
    """Restore the state from the newest intact checkpoint, after verifying it.

    Newer checkpoints that are damaged are renamed to `step-N.bad`. Leftovers of interrupted
    writes are deleted. Nothing is communicated: of several ranks, rank 0 calls this.

    Args:
        folder: checkpoint folder of the run; need not exist.
        state: a state of the same model and optimizer; changed in place.
        log: called with one line for each damaged checkpoint.

    Returns:
        The `extra` passed to `save_checkpoint`; None, with the state unchanged, if there is no
        checkpoint.

    Raises:
        CheckpointError: if all existing checkpoints are damaged; they are left unchanged.
        WeightsError: if an intact checkpoint belongs to another model.
    """
    remove_stale_temporaries(folder)
    damaged: dict[Path, str] = {}
    for path in complete(folder):
        reason = _damage(path)
        if reason:
            damaged[path] = reason
            continue
        restoring = _Restoring(path, state)
        for bad, why in damaged.items():
            renamed = set_aside(bad, "bad")
            log(f"{bad.name}: {why}; renamed to {renamed.name}, resuming from {path.name}")
        return restoring.restore()
    if damaged:
        reasons = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise CheckpointError(
            f"{folder}: no intact checkpoint: {reasons}; restore one from a copy, or begin a new "
            "run with --out"
        )
    return None


def load_step(folder: Path, state: TrainState, *, step: int) -> dict[str, Any]:
    """Restore the state from the checkpoint of a step that another rank found intact.

    Of a sharded checkpoint, only the files that this rank reads are verified.

    Args:
        folder: checkpoint folder of the run, as this rank sees it; nothing in it is changed.
        state: a state of the same model and optimizer; changed in place.
        step: of the checkpoint.

    Raises:
        CheckpointError: if it is missing or damaged here.
    """
    path = folder / step_name(step)
    # First what tells which of the other files are read.
    reason = _damage(path, digests={_MODEL, _OPTIMIZER, METADATA, STATE})
    if not reason:
        restoring = _Restoring(path, state)
        reason = _damage(path, digests=restoring.files_read())
    if reason:
        raise CheckpointError(
            f"{path}: {reason} in one rank, but rank 0 reads it; check that all ranks see the "
            "same disk"
        )
    return restoring.restore()


def require_intact_checkpoint(folder: Path, step: int) -> None:
    """Raise a ConfigError unless there is an intact checkpoint of a step; lists those there are."""
    found = {step_of(path): path for path in complete(folder)}
    if step not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise ConfigError(f"{folder}: has no checkpoint of step {step}; there are: {there}")
    if reason := _damage(found[step]):
        raise ConfigError(f"{found[step]}: {reason}; resume from another step, or none")


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after a step to `step-N.old`; return those by their former names."""
    newer = [path for path in complete(folder) if step_of(path) > step]
    for path in newer:  # newest first: if killed in between, the newest left is still the run's
        set_aside(path, "old")
    if newer:
        fsync_folder(folder)
    return newer


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint without verifying it; None if there is none."""
    return next(iter(complete(folder)), None)


def read_sharded_model(path: Path) -> dict[str, Tensor]:
    """Read parameters and buffers of a sharded checkpoint by name, after verifying it.

    Raises:
        WeightsError: if it is damaged, or no sharded checkpoint.
    """
    if reason := _damage(path):
        raise WeightsError(f"{path}: {reason}; name an older checkpoint")
    files = ShardedFiles(path)
    forms = {name: form for name, form in files.forms.items() if name.startswith(MODEL)}
    tensors = {name: torch.empty(size, dtype=dtype) for name, (dtype, size) in forms.items()}
    try:
        files.read({name: shard_of(tensor) for name, tensor in tensors.items()})
    except CheckpointError as error:
        raise WeightsError(f"{error}") from error
    return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}


def _damage(path: Path, *, digests: Collection[str] | None = None) -> str:
    """Describe the damage of a checkpoint of either kind, see `damage`."""
    reason = damage(path, is_kind=_is_kind, digests=digests)
    if not reason and (path / METADATA).is_file():
        try:
            ShardedFiles(path)
        except ValueError as error:  # digested, but made by someone else
            reason = f"{METADATA} {error}"
    return reason


def _is_kind(names: Collection[str]) -> bool:
    return set(names) == {_MODEL, _OPTIMIZER, STATE} or is_sharded_layout(names)


class _Files(Protocol):
    """The tensors of a checkpoint of either kind."""

    forms: dict[str, tuple[torch.dtype, torch.Size]]

    def files_read(self, into: Mapping[str, Shard]) -> set[str]: ...

    def read(self, into: Mapping[str, Shard]) -> None: ...


class _PlainFiles:
    """The tensors of a plain checkpoint, by the names of a sharded one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.forms: dict[str, tuple[torch.dtype, torch.Size]] = {}
        for prefix, file in _FILES.items():
            with safe_open(path / file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    stored = opened.get_slice(name)
                    size = torch.Size(stored.get_shape())
                    no_values = stored[:0] if size else stored[()]
                    self.forms[prefix + name] = no_values.dtype, size

    def files_read(self, into: Mapping[str, Shard]) -> set[str]:
        del into
        return {_MODEL, _OPTIMIZER, STATE}

    def read(self, into: Mapping[str, Shard]) -> None:
        for prefix, file in _FILES.items():
            with safe_open(self._path / file, "pt") as opened, torch.no_grad():
                for name, shard in into.items():
                    if name.startswith(prefix):
                        stored = opened.get_slice(name.removeprefix(prefix))
                        shard.local.copy_(stored[shard.slices()])


class _Restoring:
    """An intact checkpoint and the tensors of a state to read it into.

    Raises:
        WeightsError: if it is of another model; the state is unchanged.
    """

    def __init__(self, path: Path, state: TrainState) -> None:
        self._path, self._state = path, state
        is_sharded = (path / METADATA).is_file()
        self._files: _Files = ShardedFiles(path) if is_sharded else _PlainFiles(path)
        model = state.model.state_dict()
        if other := differences(
            {
                n.removeprefix(MODEL): _form(*f)
                for n, f in self._files.forms.items()
                if n.startswith(MODEL)
            },
            {name: _form(tensor.dtype, tensor.shape) for name, tensor in model.items()},
        ):
            raise WeightsError(f"{path}: is of another model: {other}; use its configuration")
        self._moments = self._empty_moments()
        self._into = {MODEL + name: shard_of(tensor) for name, tensor in model.items()}
        for name, kinds in self._moments.items():
            for kind, tensor in kinds.items():
                self._into[f"{OPTIMIZER}{kind}.{name}"] = shard_of(tensor)

    def files_read(self) -> set[str]:
        """Return the names of the files that `restore` reads."""
        return self._files.files_read(self._into)

    def restore(self) -> dict[str, Any]:
        """Put the checkpoint into the state; return the extra values that it was saved with."""
        state, record = self._state, read_state(self._path)
        self._files.read(self._into)
        names = {parameter: name for name, parameter in state.model.named_parameters()}
        ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
        numbered = {i: self._moments[n] for i, n in enumerate(ordered) if n in self._moments}
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        state.step, state.bad_in_a_row = record["step"], record["bad_in_a_row"]
        if state.scaler is not None:
            state.scaler.load_state_dict(record["scaler"])
        return dict(record["extra"])

    def _empty_moments(self) -> dict[str, dict[str, Tensor]]:
        """Return tensors for the moments of each parameter, sharded as the parameter is."""
        parameters = dict(self._state.model.named_parameters())
        moments: dict[str, dict[str, Tensor]] = {}
        for full_name, (dtype, size) in self._files.forms.items():
            kind, _, name = full_name.removeprefix(OPTIMIZER).partition(".")
            parameter = parameters.get(name)
            if not full_name.startswith(OPTIMIZER) or parameter is None:
                continue
            empty = torch.empty(size, dtype=dtype)
            if size == parameter.shape:
                empty = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            moments.setdefault(name, {})[kind] = empty
        return moments


def _form(dtype: torch.dtype, size: torch.Size) -> str:
    return f"{dtype} {list(size)}"
