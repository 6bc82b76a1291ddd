"""Finished batches of features on disk, made by any number of processes, in any order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.atomic import open_atomic, remove_stale_temporaries, write_json_atomic
from mae.data.batching.batch import Bad, EvaluationBatch
from mae.data.types import Log
from mae.evaluation.features import Array
from mae.parallel.processes import Communicator
from mae.runs.signals import RunLock


class FeatureParts(NamedTuple):
    """The finished batches of a job: a file of features each, and one of its damaged images."""

    folder: Path
    batch: int
    images: int
    """Number of all images."""

    def ids(self, number: int) -> range:
        """Return the ids of the images of a batch."""
        return range(number * self.batch, min((number + 1) * self.batch, self.images))

    @property
    def batches(self) -> int:
        """Number of all batches."""
        return -(-self.images // self.batch)

    def path(self, number: int) -> Path:
        """Return the file of a batch's features."""
        return self.folder / f"{number}.npy"

    def missing(self) -> list[int]:
        """Return the numbers of the batches that are not finished."""
        found = {path.stem for path in self.folder.glob("*.npy")}
        return [number for number in range(self.batches) if str(number) not in found]

    def write(self, number: int, features: Array, got: EvaluationBatch) -> None:
        """Write a batch; its features appear last, by one rename."""
        damaged = self.path(number).with_suffix(".json")
        damaged.unlink(missing_ok=True)  # of a batch that was not finished
        if got.bad or got.warned:
            write_json_atomic(damaged, [got.bad, got.warned])
        with open_atomic(self.path(number)) as file:
            np.save(file, features)

    def damaged(self) -> tuple[list[Bad], list[Bad]]:
        """Return the unreadable images and those read with a warning, in order."""
        found = [json.loads(path.read_bytes()) for path in self.folder.glob("*.json")]
        bad, warned = ([Bad(*each) for both in found for each in both[i]] for i in (0, 1))
        return sorted(bad), sorted(warned)

    def join(self, rows: int, path: Path) -> int:
        """Write all rows as one .npy, a batch in memory at a time; return their width."""
        width = 0
        with open_atomic(path) as file:
            for number in range(self.batches):
                features: Array = np.load(self.path(number))
                if not number:
                    width = features.shape[1]
                    header = np.lib.format.header_data_from_array_1_0(features)
                    np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, width)})
                file.write(features.tobytes())
        return width


@contextmanager
def open_parts(
    parts: FeatureParts, work: str, *, ranks: Communicator, log: Log
) -> Iterator[Sequence[int]]:
    """Lock the store in rank 0, and give every rank the numbers of the batches to make.

    Args:
        parts: finished batches; those of a job of other work are removed.
        work: digest of everything that determines the features.
        ranks: the processes of this job.
        log: called with a line on what is resumed.
    """
    todo, store = list[int](), parts.folder.parent
    with ExitStack() as held:
        if ranks.is_main_process:
            store.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunLock(store / "lock"))
            _discard_other_work(store, work, log=log)
            parts.folder.mkdir(exist_ok=True)
            todo = parts.missing()
            if done := parts.images - sum(len(parts.ids(number)) for number in todo):
                log(f"resuming: {done:,} images are done")
        yield ranks.all_gather(todo)[0]


def _discard_other_work(store: Path, work: str, *, log: Log) -> None:
    """Remove the batches of a stopped job with other inputs."""
    record, now = store / "done.json", {"work": work}
    if record.exists():
        if json.loads(record.read_bytes()) == now:
            remove_stale_temporaries(store / "batches")
            return
        log(
            "starting over: weights, images, settings or version differ from those of the last "
            "start"
        )
    if (store / "batches").exists():
        shutil.rmtree(store / "batches")
    (store / "features").unlink(missing_ok=True)  # of an older version
    write_json_atomic(record, now)
