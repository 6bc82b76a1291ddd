"""Save and load training checkpoints atomically, verified by sha256.

    step-00001230/model.safetensors       parameters and buffers by name
                 /optimizer.safetensors   "exp_avg.NAME" ...: optimizer state by parameter
                 /state.json              step, bad_in_a_row, scaler, versions, caller's extras
                 /manifest.json           size and sha256 of the other three

A `step-N` folder is always complete. `.tmp-*` is being written, `.del-*` is being deleted, and
`step-*.bad` was found damaged. `step-*.old` is newer than the one that the user went back to; the
next save deletes it. The newest checkpoint is found by listing the folder. The caller must hold
the run's lock to save or load.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mae.atomic import fsync_folder, remove_stale_temporaries, write_durably
from mae.data.types import Log
from mae.errors import CheckpointError, ConfigError, TrainingError, WeightsError
from mae.runs.directory import differences, versions
from mae.runs.state import TrainState

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_MANIFEST = "manifest.json"


class NotSaved(TrainingError):
    """A checkpoint could not be written; older ones are intact and training may continue."""


def save_checkpoint(
    folder: Path, state: TrainState, *, extra: Mapping[str, object], keep: int
) -> Path:
    """Write the state durably as `folder/step-N` and delete the oldest checkpoints.

    Args:
        folder: checkpoint folder of the run; created if missing.
        state: not changed. A step that is already saved is not written again.
        extra: JSON values, returned by `load_checkpoint`.
        keep: number of checkpoints to keep, at least 2.

    Raises:
        NotSaved: if the disk is full or not writable; partial files are removed.
        TrainingError: if a parameter or buffer is not finite.
    """
    path = folder / _name(state.step)
    if path.is_dir():
        return path
    _require_finite(state)
    model, moments = state.model.state_dict(), _moments(state)
    # The headers and the two JSON files take much less than a megabyte.
    needed = sum(t.nbytes for t in (*model.values(), *moments.values())) + 2**20
    record = {"step": state.step, "bad_in_a_row": state.bad_in_a_row, "versions": versions()}
    if state.scaler is not None:
        record["scaler"] = state.scaler.state_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder)
        # Some network file systems do not report sizes: 0 of 0.
        if disk.total and disk.free < needed:
            raise OSError("no space left")
        _write(path, model, moments, {**record, "extra": dict(extra)})
    except OSError as error:
        remove_stale_temporaries(folder)
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
        raise NotSaved(
            f"{path}: not saved: {error.strerror or error}: needs {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free; free some space, or check the folder's permissions"
        ) from error
    _delete(folder, [*_complete(folder)[keep:], *folder.glob("step-*.old")])
    return path


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that no longer needs them, and the folder if then empty.

    What cannot be deleted is left: the caller has recorded that it is no longer needed.
    """
    _delete(folder, folder.glob("step-*"))  # including damaged ones (.bad)
    with suppress(OSError):
        folder.rmdir()


def _delete(folder: Path, checkpoints: Iterable[Path]) -> None:
    for old in checkpoints:
        # Deletion is retried after the next save.
        with suppress(OSError):
            old.rename(old.with_name(f".del-{old.name}-{secrets.token_hex(4)}"))
    remove_stale_temporaries(folder)


def load_checkpoint(folder: Path, state: TrainState, *, log: Log) -> dict[str, Any] | None:
    """Restore the state from the newest intact checkpoint, after verifying it.

    Newer checkpoints that are damaged are renamed to `step-N.bad`. Leftovers of interrupted
    writes are deleted.

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
    for path in _complete(folder):
        reason = _damage(path)
        if reason:
            damaged[path] = reason
            continue
        model = _model_for(state, path)
        for bad, why in damaged.items():
            renamed = _set_aside(bad, "bad")
            log(f"{bad.name}: {why}; renamed to {renamed.name}, resuming from {path.name}")
        return _restore(state, path, model)
    if damaged:
        reasons = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise CheckpointError(
            f"{folder}: no intact checkpoint: {reasons}; restore one from a copy, or begin a new "
            "run with --out"
        )
    return None


def load_step(folder: Path, state: TrainState, *, step: int) -> dict[str, Any]:
    """Restore the state from the checkpoint of a step that another rank found intact.

    Args:
        folder: checkpoint folder of the run, as this rank sees it; nothing in it is changed.
        state: a state of the same model and optimizer; changed in place.
        step: of the checkpoint.

    Raises:
        CheckpointError: if it is missing or damaged here.
    """
    path = folder / _name(step)
    if reason := _damage(path):
        raise CheckpointError(
            f"{path}: {reason} in one rank, but rank 0 reads it; check that all ranks see the "
            "same disk"
        )
    return _restore(state, path, _model_for(state, path))


def require_intact_checkpoint(folder: Path, step: int) -> None:
    """Raise a ConfigError unless there is an intact checkpoint of a step; lists those there are."""
    found = {_step(path): path for path in _complete(folder)}
    if step not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise ConfigError(f"{folder}: has no checkpoint of step {step}; there are: {there}")
    if reason := _damage(found[step]):
        raise ConfigError(f"{found[step]}: {reason}; resume from another step, or none")


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after a step to `step-N.old`; return those by their former names."""
    newer = [path for path in _complete(folder) if _step(path) > step]
    for path in newer:  # newest first: if killed in between, the newest left is still the run's
        _set_aside(path, "old")
    if newer:
        fsync_folder(folder)
    return newer


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint without verifying it; None if there is none."""
    return next(iter(_complete(folder)), None)


def _complete(folder: Path) -> list[Path]:
    """List the complete checkpoints, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=_step, reverse=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _model_for(state: TrainState, path: Path) -> dict[str, Tensor]:
    """Return the model tensors of a checkpoint, which must be those of the state's model."""
    model = load_file(path / _MODEL)
    if other := differences(_forms(model), _forms(state.model.state_dict())):
        raise WeightsError(f"{path}: is of another model: {other}; use its configuration")
    return model


def _restore(state: TrainState, path: Path, model: dict[str, Tensor]) -> dict[str, Any]:
    """Put an intact checkpoint into the state; return the extra values that it was saved with."""
    record = json.loads((path / _STATE).read_bytes())
    _apply(state, model, load_file(path / _OPTIMIZER))
    state.step, state.bad_in_a_row = record["step"], record["bad_in_a_row"]
    if state.scaler is not None:
        state.scaler.load_state_dict(record["scaler"])
    return dict(record["extra"])


def _require_finite(state: TrainState) -> None:
    tensors = state.model.state_dict().items()
    bad = [name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise TrainingError(
            f"step {state.step}: not saved: {len(bad)} tensors are not finite, {bad[:5]}; begin a "
            "new run with a lower --lr"
        )


def _moments(state: TrainState) -> dict[str, Tensor]:
    """Return the optimizer state tensors, named by kind and parameter."""
    return {
        f"{kind}.{name}": tensor
        for name, parameter in state.model.named_parameters()
        for kind, tensor in state.optimizer.state.get(parameter, {}).items()
    }


def _write(
    path: Path, model: dict[str, Tensor], moments: dict[str, Tensor], record: dict[str, object]
) -> None:
    """Write the files and their manifest to a temporary folder, then rename it to `path`."""
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    # As bytes: `save_file` sets file mode 0600, and the digest would need to read the file again.
    manifest: dict[str, object] = {}
    makers: dict[str, Callable[[], bytes]] = {
        _MODEL: lambda: save(model),
        _OPTIMIZER: lambda: save(moments),
        _STATE: lambda: json.dumps(record, indent=1).encode(),
        _MANIFEST: lambda: json.dumps(manifest, indent=1).encode(),
    }
    for name, make in makers.items():  # one at a time in memory
        content = make()
        write_durably(temporary / name, content)
        manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    # Durability depends on this order: file contents, their names, the rename, the new name.
    fsync_folder(temporary)
    temporary.rename(path)
    fsync_folder(path.parent)
    fsync_folder(path.parent.parent)


def _damage(path: Path) -> str:
    """Describe the damage of a checkpoint on disk; empty if it is as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        # Desktops and network file systems may add hidden files.
        found = {p.name for p in path.iterdir() if not p.name.startswith(".")} - {_MANIFEST}
        if not found == set(manifest) == {_MODEL, _OPTIMIZER, _STATE}:
            return f"holds {sorted(found)}, its manifest names {sorted(manifest)}"
        for name, entry in manifest.items():
            size = (path / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size:,} bytes, expected {entry['size']:,}"
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} is not what was written (sha256)"
        step = json.loads((path / _STATE).read_bytes())["step"]
        return "" if step == _step(path) else f"is of step {step}"
    except PermissionError as error:
        # Not damage: falling back to an older checkpoint would lose progress.
        raise CheckpointError(f"{error.filename}: cannot be read; check its permissions") from error
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, TypeError, KeyError):
        return f"{_MANIFEST} is not a manifest"


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}


@torch.no_grad()
def _apply(state: TrainState, model: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    for name, tensor in state.model.state_dict().items():
        tensor.copy_(model[name])
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for moment, tensor in moments.items():
        kind, _, name = moment.partition(".")
        # A copy, since the loaded tensor may be a view of the file, which is deleted later.
        by_parameter.setdefault(name, {})[kind] = tensor.clone()
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
    numbered = {i: by_parameter[n] for i, n in enumerate(ordered) if n in by_parameter}
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def _set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint to `step-N.WHY` so that its step can be saved again."""
    aside = path.with_name(f"{path.name}.{why}")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.{why}")
    return path.rename(aside)
