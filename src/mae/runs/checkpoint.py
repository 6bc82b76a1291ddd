"""Checkpoints: folders that appear whole by one rename, and are believed only after a check.

    step-00001230/model.safetensors       parameters and buffers by name
                 /optimizer.safetensors   "exp_avg.NAME" ...: the optimiser's state by parameter
                 /state.json              step, bad_in_a_row, scaler, versions, what the caller adds
                 /manifest.json           size and sha256 of the other three

`step-` and a number is always complete. `.tmp-*` is being written, `.del-*` is being deleted,
`step-*.bad` was found damaged. Which one is the newest is found by looking. Whoever saves or loads
holds the run's lock.
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

from mae.errors import CheckpointError, TrainingError, WeightsError
from mae.runs.directory import differences, fsync_folder, sweep_litter, versions, write_durably
from mae.runs.state import TrainState

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_MANIFEST = "manifest.json"


class NotSaved(TrainingError):
    """A checkpoint could not be written; the older ones are whole and training may go on."""


def save_checkpoint(
    folder: Path, state: TrainState, *, extra: Mapping[str, object], keep: int
) -> Path:
    """Write the state as `folder/step-N`, durable when this returns, and drop the oldest ones.

    Args:
        folder: the run's checkpoints; made if it is not there.
        state: not changed. A step that is saved already is not written again.
        extra: JSON values, given back by `load_checkpoint`.
        keep: checkpoints to keep, at least 2.

    Raises:
        NotSaved: for a disk that is full or cannot be written to; nothing is left of the attempt.
        TrainingError: if a parameter or buffer is not finite.
    """
    path = folder / f"step-{state.step:08d}"
    if path.is_dir():
        return path
    _require_finite(state)
    model, moments = state.model.state_dict(), _moments(state)
    # The headers and the two JSON files are small beside a megabyte.
    needed = sum(t.nbytes for t in (*model.values(), *moments.values())) + 2**20
    record = {"step": state.step, "bad_in_a_row": state.bad_in_a_row, "versions": versions()}
    if state.scaler is not None:
        record["scaler"] = state.scaler.state_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder)
        # Some network file systems know no sizes and report 0 of 0.
        if disk.total and disk.free < needed:
            raise OSError("no space left")
        _write(path, model, moments, {**record, "extra": dict(extra)})
    except OSError as error:
        sweep_litter(folder)
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
        raise NotSaved(
            f"{path}: not saved: {error.strerror or error}: needs {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free; make room, or check who may write there"
        ) from error
    _delete(folder, _complete(folder)[keep:])
    return path


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that needs them no more, and the folder if it is empty then.

    What cannot be deleted stays: the caller has recorded that nobody reads it any more.
    """
    _delete(folder, folder.glob("step-*"))  # damaged ones that were set aside as well
    with suppress(OSError):
        folder.rmdir()


def _delete(folder: Path, checkpoints: Iterable[Path]) -> None:
    for old in checkpoints:
        # What cannot be deleted now is tried again after the next save.
        with suppress(OSError):
            old.rename(old.with_name(f".del-{old.name}-{secrets.token_hex(4)}"))
    sweep_litter(folder)


def load_checkpoint(
    folder: Path, state: TrainState, *, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Set the state to the newest checkpoint that is whole; nothing is applied unverified.

    Damaged ones that are newer are renamed to `step-N.bad`. Litter of interrupted writes goes.

    Args:
        folder: the run's checkpoints; need not exist.
        state: a state of the same model and optimiser; changed in place.
        say: takes one line for the user on each damaged checkpoint.

    Returns:
        What `save_checkpoint` got as `extra`; None, and the state as it was, if there is no
        checkpoint.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged; they stay as they are.
        WeightsError: if a whole one is of another model.
    """
    sweep_litter(folder)
    damaged: dict[Path, str] = {}
    for path in _complete(folder):
        reason = _damage(path)
        if reason:
            damaged[path] = reason
            continue
        model = load_file(path / _MODEL)
        found, wanted = _forms(model), _forms(state.model.state_dict())
        if found != wanted:
            raise WeightsError(
                f"{path}: is of another model: {differences(found, wanted)}; use the configuration "
                "it was made with"
            )
        for bad, why in damaged.items():
            say(f"{bad.name}: {why}; renamed to {_set_aside(bad).name}, going on from {path.name}")
        record = json.loads((path / _STATE).read_bytes())
        _apply(state, model, load_file(path / _OPTIMIZER))
        state.step, state.bad_in_a_row = record["step"], record["bad_in_a_row"]
        if state.scaler is not None:
            state.scaler.load_state_dict(record["scaler"])
        return dict(record["extra"])
    if damaged:
        reasons = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise CheckpointError(
            f"{folder}: none of the {len(damaged)} checkpoints can be used: {reasons}; restore one "
            "from a copy, or begin a new run with --out"
        )
    return None


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint, unverified; None if there is none."""
    return next(iter(_complete(folder)), None)


def _complete(folder: Path) -> list[Path]:
    """List the complete checkpoints, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _require_finite(state: TrainState) -> None:
    tensors = state.model.state_dict().items()
    bad = [name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise TrainingError(
            f"step {state.step}: {len(bad)} tensors of the model are not finite, {bad[:5]}; not "
            "saved. Begin a new run with a lower --lr"
        )


def _moments(state: TrainState) -> dict[str, Tensor]:
    """Name each tensor of the optimiser's state by its kind and its parameter."""
    return {
        f"{kind}.{name}": tensor
        for name, parameter in state.model.named_parameters()
        for kind, tensor in state.optimizer.state.get(parameter, {}).items()
    }


def _write(
    path: Path, model: dict[str, Tensor], moments: dict[str, Tensor], record: dict[str, object]
) -> None:
    """Write the files and their manifest elsewhere, and let them appear as `path` at once."""
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    # As bytes: `save_file` gives the file mode 0600, and the digest would read it again.
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
    # The order makes it durable: contents, then their names, then the one rename, then its name.
    fsync_folder(temporary)
    temporary.rename(path)
    fsync_folder(path.parent)
    fsync_folder(path.parent.parent)


def _damage(path: Path) -> str:
    """Say what is wrong with a checkpoint on disk; nothing if it is as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        # Desktops and network file systems leave hidden files of their own.
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
        # No damage: falling back would throw progress away.
        raise CheckpointError(
            f"{error.filename}: cannot be read; give yourself the right"
        ) from error
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, TypeError, KeyError):
        return f"{_MANIFEST} is no manifest"


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}


@torch.no_grad()
def _apply(state: TrainState, model: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    for name, tensor in state.model.state_dict().items():
        tensor.copy_(model[name])
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for moment, tensor in moments.items():
        kind, _, name = moment.partition(".")
        # A copy, since the loaded tensor may be a view of the file, which is deleted one day.
        by_parameter.setdefault(name, {})[kind] = tensor.clone()
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
    state.optimizer.load_state_dict(
        {
            "state": {i: by_parameter[n] for i, n in enumerate(ordered) if n in by_parameter},
            "param_groups": state.optimizer.state_dict()["param_groups"],
        }
    )


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that its step can be written again."""
    aside = path.with_name(f"{path.name}.bad")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.bad")
    return path.rename(aside)
