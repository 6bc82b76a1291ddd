"""Checkpoints of a state that ranks hold in parts, written by all ranks together.

    step-00001230/__0_0.distcp ...   one file a rank, of torch.distributed.checkpoint (DCP)
                 /.metadata          which part of which tensor is where: a pickle of DCP
                 /state.json         as in a plain checkpoint
                 /manifest.json      size and sha256 of the others

Tensors are called `model.NAME` and `optimizer.exp_avg.NAME` ... Any number of ranks reads them, one
process without a process group included, into a state that is sharded or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from mae.errors import CheckpointError
from mae.parallel.processes import Communicator
from mae.parallel.shards import Shard
from mae.runs.manifest import (
    STATE,
    Entry,
    NotSaved,
    delete_oldest,
    entry_of,
    make_temporary,
    not_saved,
    publish,
    step_name,
)
from mae.runs.state import Snapshot, TrainState, snapshot_of

METADATA = ".metadata"
MODEL, OPTIMIZER = "model.", "optimizer."
_SHARD = re.compile(r"__\d{1,6}_0\.distcp")
T = TypeVar("T")


def is_sharded_layout(names: Collection[str]) -> bool:
    """Return whether files of these names, besides the manifest, are a sharded checkpoint."""
    rest = set(names) - {METADATA, STATE}
    numbers = {f"__{rank}_0.distcp" for rank in range(len(rest))}
    return len(names) == len(rest) + 2 and bool(rest) and rest == numbers


def save_sharded(
    folder: Path,
    state: TrainState | Snapshot,
    *,
    extra: Mapping[str, object],
    keep: int,
    ranks: Communicator,
) -> Path:
    """Write the state durably as `folder/step-N` and delete the oldest checkpoints; a collective.

    Args:
        folder: checkpoint folder of the run, on a disk that all ranks see.
        state: of each rank, at the same step; not changed. A step that is already saved is not
            written again.
        extra: JSON values, returned by `load_checkpoint`; those of rank 0 count.
        keep: number of checkpoints to keep, at least 2.
        ranks: the processes that hold the state.

    Raises:
        NotSaved: on all ranks, if any of them cannot write; partial files are removed.
        TrainingError: on all ranks, if a parameter or buffer is not finite.
    """
    snapshot = state if isinstance(state, Snapshot) else snapshot_of(state)
    path = folder / step_name(snapshot.step)
    facts = ranks.all_gather((path.is_dir(), snapshot.non_finite(), snapshot.nbytes))
    if facts[0][0]:
        return path
    snapshot.require_finite(sorted({name for _, bad, _ in facts for name in bad}))
    # The headers and the JSON files take much less than a megabyte a rank.
    needed = sum(nbytes + 2**20 for *_, nbytes in facts)
    reason = _write(path, snapshot, extra=extra, needed=needed, ranks=ranks)
    if reason:
        error = ranks.on_main(lambda: f"{not_saved(path, reason, needed=needed)}")
        raise NotSaved(error)
    ranks.on_main(lambda: delete_oldest(folder, keep=keep))
    return path


def _write(
    path: Path,
    snapshot: Snapshot,
    *,
    extra: Mapping[str, object],
    needed: int,
    ranks: Communicator,
) -> str:
    """Write a checkpoint; return why it could not be written, on all ranks, else an empty text."""
    from mae.parallel import dcp

    shards = {MODEL + name: shard for name, shard in snapshot.model.items()}
    shards |= {OPTIMIZER + name: shard for name, shard in snapshot.moments.items()}
    made = ranks.on_main(lambda: _tried(lambda: make_temporary(path, needed=needed)))
    temporary, reason = made
    if temporary is None:
        return reason
    plan = dcp.plan_save(shards, ranks)

    def write_own() -> tuple[Any, Entry]:
        return dcp.write_shards(temporary, plan), entry_of(temporary / plan.file)

    parts = ranks.all_gather(_tried(write_own))

    def finish() -> None:
        results, entries = zip(*(part for part, _ in parts), strict=True)
        dcp.write_metadata(temporary, plan, list(results))
        # First in the manifest, hence verified first.
        files = {METADATA: entry_of(temporary / METADATA)}
        files |= {f"__{rank}_0.distcp": entry for rank, entry in enumerate(entries)}
        publish(temporary, path, files, snapshot, extra)

    if reasons := [f"rank {rank}: {why}" for rank, (_, why) in enumerate(parts) if why]:
        return reasons[0]
    reason = ranks.on_main(lambda: _tried(finish)[1])
    return reason


def _tried(make: Callable[[], T]) -> tuple[T | None, str]:
    """Call a function that writes; return its result, or why the disk refused it."""
    try:
        return make(), ""
    except (OSError, RuntimeError) as error:
        # Torch's writer hides the error of the disk behind one of its own.
        shown: BaseException = error
        while not isinstance(shown, OSError) and shown.__context__ is not None:
            shown = shown.__context__
        if isinstance(shown, OSError):
            return None, shown.strerror or str(shown)
        return None, f"{error}".partition("\n")[0]


class ShardedFiles:
    """The tensors of a sharded checkpoint; only `.metadata` is read at first.

    Args:
        path: the checkpoint.

    Raises:
        BadMetadata: if the metadata is no metadata of tensors.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from mae.parallel.dcp_metadata import read_metadata

        self._path = path
        files = {p.name: p.stat().st_size for p in path.iterdir() if _SHARD.fullmatch(p.name)}
        self._metadata = read_metadata(path / METADATA, files=set(files))
        tensors: dict[str, Any] = self._metadata.state_dict_metadata
        self.forms = {n: (t.properties.dtype, t.size) for n, t in tensors.items()}
        """Type and shape of each tensor."""
        needed = sum(dtype.itemsize * size.numel() for dtype, size in self.forms.values())
        if needed > sum(files.values()):
            raise ValueError(f"{METADATA} declares {needed:,} bytes, more than its files have")

    def files_read(self, into: Mapping[str, Shard]) -> set[str]:
        """Return the names of the files that `read` needs."""
        from mae.parallel import dcp

        return dcp.files_read(self._metadata, into) | {METADATA, STATE}

    def read(self, into: Mapping[str, Shard]) -> None:
        """Read tensors of the same forms in place, without communication.

        Raises:
            CheckpointError: if a file holds anything but tensors; nothing in it is executed.
        """
        from mae.parallel import dcp

        try:
            with torch.no_grad():
                dcp.read_shards(self._path, self._metadata, into)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read: {error.strerror}") from error
        except Exception as error:  # of many kinds: whatever a hostile file makes torch.load raise
            why = f"{error}".rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
            raise CheckpointError(
                f"{self._path}: holds something else than tensors ({why[:120]}); delete it, or "
                "resume from an older checkpoint with --resume-from"
            ) from error
