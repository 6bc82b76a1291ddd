"""Folders of checkpoints, and the manifest that a checkpoint is verified by.

A `step-N` folder is always complete. `.tmp-*` is being written, `.del-*` is being deleted, and
`step-*.bad` was found damaged. `step-*.old` is newer than the one that the user went back to; the
next save deletes it. The newest checkpoint is found by listing the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mae.atomic import fsync_folder, remove_stale_temporaries, write_durably
from mae.errors import CheckpointError, TrainingError
from mae.runs.directory import versions
from mae.runs.state import Snapshot

STATE, MANIFEST = "state.json", "manifest.json"
Entry = dict[str, object]
"""Size and sha256 of a file."""
T = TypeVar("T")


class NotSaved(TrainingError):
    """A checkpoint could not be written; older ones are intact and training may continue."""


def not_saved(path: Path, reason: str, *, needed: int) -> NotSaved:
    """Remove what is half-written and return the error, with the space that is needed and free."""
    remove_stale_temporaries(path.parent)
    free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
    return NotSaved(
        f"{path}: not saved: {reason}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are "
        "free; free some space, or check the folder's permissions"
    )


def make_temporary(path: Path, *, needed: int) -> Path:
    """Make the folder that a checkpoint is written to.

    Args:
        path: name of the complete checkpoint.
        needed: bytes that will be written.

    Raises:
        OSError: if it cannot be made, or has no room for them.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    # Some network file systems do not report sizes: 0 of 0.
    if disk.total and disk.free < needed:
        raise OSError("no space left")
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    return temporary


def write_file(path: Path, content: bytes) -> Entry:
    """Write a file durably; return its entry in the manifest."""
    write_durably(path, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def entry_of(path: Path) -> Entry:
    """Return the entry of a file that is already written."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def publish(
    temporary: Path,
    path: Path,
    files: dict[str, Entry],
    snapshot: Snapshot,
    extra: Mapping[str, object],
) -> None:
    """Write the two JSON files beside the tensors, and rename the folder to `path`."""
    record: dict[str, object] = {
        "step": snapshot.step, "bad_in_a_row": snapshot.bad_in_a_row, "versions": versions()
    }  # fmt: skip
    if snapshot.scaler is not None:
        record["scaler"] = snapshot.scaler
    record["extra"] = dict(extra)
    files[STATE] = write_file(temporary / STATE, _json(record))
    write_file(temporary / MANIFEST, _json(files))
    # Durability depends on this order: file contents, their names, the rename, the new name.
    fsync_folder(temporary)
    temporary.rename(path)
    fsync_folder(path.parent)
    fsync_folder(path.parent.parent)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def damage(
    path: Path,
    *,
    is_kind: Callable[[Collection[str]], bool],
    digests: Collection[str] | None = None,
) -> str:
    """Describe the damage of a checkpoint on disk; empty if it is as it was written.

    Args:
        path: the checkpoint.
        is_kind: whether files of these names, besides the manifest, are a checkpoint.
        digests: names of the files whose content is read; None: all of them.

    Raises:
        CheckpointError: if it may not be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        # Desktops and network file systems may add hidden files.
        names = (p.name for p in path.iterdir())
        found = {n for n in names if n in manifest or not n.startswith(".")} - {MANIFEST}
        if found != set(manifest) or not is_kind(manifest):
            return f"holds {sorted(found)}, its manifest names {sorted(manifest)}"
        for name, entry in manifest.items():
            size = (path / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size:,} bytes, expected {entry['size']:,}"
            if (digests is None or name in digests) and entry_of(path / name) != entry:
                return f"{name} is not what was written (sha256)"
        step = read_state(path)["step"]
        return "" if step == step_of(path) else f"is of step {step}"
    except PermissionError as error:
        # Not damage: falling back to an older checkpoint would lose progress.
        raise CheckpointError(f"{error.filename}: cannot be read; check its permissions") from error
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return f"{MANIFEST} is not a manifest"


def read_state(path: Path) -> dict[str, Any]:
    """Read the state.json of a checkpoint.

    Raises:
        ValueError: if it is none.
    """
    record = json.loads((path / STATE).read_bytes())
    kinds = {"step": int, "bad_in_a_row": int, "extra": dict}
    if not all(isinstance(record[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{STATE} is not the state of a run")
    return dict(record)


def complete(folder: Path) -> list[Path]:
    """List the complete checkpoints, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step of a complete checkpoint by its name."""
    return int(path.name.removeprefix("step-"))


def delete_oldest(folder: Path, *, keep: int) -> None:
    """Delete all but the newest checkpoints of a run, and those that the user went back from."""
    delete(folder, [*complete(folder)[keep:], *folder.glob("step-*.old")])


def delete(folder: Path, checkpoints: Iterable[Path]) -> None:
    """Delete checkpoints; what cannot be deleted is left, and tried again after the next save."""
    for old in checkpoints:
        with suppress(OSError):
            old.rename(old.with_name(f".del-{old.name}-{secrets.token_hex(4)}"))
    remove_stale_temporaries(folder)


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint to `step-N.WHY` so that its step can be saved again."""
    aside = path.with_name(f"{path.name}.{why}")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.{why}")
    return path.rename(aside)
