"""Compute a row of numbers for each image on any number of ranks; a stopped job resumes.

The finished batches are files, made by any rank, in any order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mae.atomic import open_atomic, remove_stale_temporaries, write_atomic, write_json_atomic
from mae.config.serialize import to_dict
from mae.data.batching.batch import Bad, EvaluationBatch
from mae.data.sources.source import Source
from mae.data.types import Log
from mae.errors import ConfigError
from mae.evaluation.inputs import FeatureSettings, evaluation_batches, report_unreadable
from mae.evaluation.split import Ids
from mae.model.encoder import Encoder
from mae.parallel.processes import Communicator, require_agreement
from mae.planning.hardware import has_bf16
from mae.progress import Progress
from mae.runs.log import READ
from mae.runs.signals import RunLock, StopSignal
from mae.train.resolve import resolve_precision

FINISHING = "finishing this batch; the finished ones are kept"

Rows = NDArray[Any]
"""B F numbers: a row for each image of a batch."""


class BatchStore(NamedTuple):
    """The finished batches of a job: a file of rows each, and one of its damaged images."""

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
        """Return the file of a batch's rows."""
        return self.folder / f"{number}.npy"

    def missing(self) -> list[int]:
        """Return the numbers of the batches that are not finished."""
        found = {path.stem for path in self.folder.glob("*.npy")}
        return [number for number in range(self.batches) if str(number) not in found]

    def write(self, number: int, rows: Rows, got: EvaluationBatch) -> None:
        """Write a batch; its rows appear last, by one rename."""
        damaged = self.path(number).with_suffix(".json")
        damaged.unlink(missing_ok=True)  # of a batch that was not finished
        if got.bad or got.warned:
            write_json_atomic(damaged, [got.bad, got.warned])
        with open_atomic(self.path(number)) as file:
            np.save(file, rows)

    def rows(self) -> Iterator[Rows]:
        """Yield the rows of each batch, in order."""
        for number in range(self.batches):
            yield np.load(self.path(number))

    def readable(self, out: Path, *, log: Log) -> tuple[Ids, list[Bad]]:
        """Return the ids of the rows, and the unreadable images, which are reported.

        All damaged images are also listed in a .bad-files.tsv beside `out`.

        Raises:
            DataError: if no image could be read.
        """
        found = [json.loads(path.read_bytes()) for path in self.folder.glob("*.json")]
        bad, warned = (sorted(Bad(*each) for both in found for each in both[i]) for i in (0, 1))
        report_unreadable(self.images, bad, warned, log=log)
        if bad or warned:
            rows = [("name", "reason"), *((each.name, each.reason) for each in bad)]
            rows += [(each.name, f"{READ}{each.reason}") for each in warned]
            write_tsv(out.with_suffix(".bad-files.tsv"), rows)
        return np.delete(np.arange(self.images), [each.id for each in bad]), bad

    def join(self, rows: int, path: Path) -> int:
        """Write all rows as one .npy, a batch in memory at a time; return their width."""
        width = 0
        with open_atomic(path) as file:
            for number, part in enumerate(self.rows()):
                if not number:
                    width = part.shape[1]
                    header = np.lib.format.header_data_from_array_1_0(part)
                    np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, width)})
                file.write(part.tobytes())
        return width


def write_tsv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table atomically; names have no tabs and line breaks, see `printable`."""
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode())


def store_folder(out: Path) -> Path:
    """Return the hidden folder beside a file that keeps what is done of it."""
    return out.with_name(f".{out.name}.part")


class Work(NamedTuple):
    """The computation of a row for each image of a source."""

    weights: str
    """Path of the weights, as given."""
    model: nn.Module
    """On its device; its tensors determine the rows."""
    encoder: Encoder
    """Determines the format of the images."""
    source: Source
    settings: FeatureSettings
    compute: Callable[[Tensor], Rows]
    """Returns the rows of images B C H W of the stored type."""
    what: object
    """Whatever else determines the rows, for JSON."""

    def digest(self) -> str:
        """Hash everything that determines the rows."""
        device, settings = self.encoder.cls_token.device, self.settings
        facts = [to_dict(self.encoder.config), self.source.fingerprint(), self.what]
        precision = resolve_precision(settings.precision, has_bf16=has_bf16(device))
        facts += [settings.batch, device.type, precision]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def computed(
    work: Work, out: Path, *, ranks: Communicator, stop: StopSignal, progress: Progress
) -> Iterator[BatchStore]:
    """Compute the rows of all images for a block that publishes them; resume a stopped job.

    Each finished batch is a file in a hidden folder beside `out`, which is removed after the block.
    A repeated call reuses them if weights, images and settings are the same, on any number of
    processes. The processes divide the batches; the rows are bit-identical to those of one process.

    Args:
        work: what to compute.
        out: the file that rank 0 is to write in the block, last of all files, by one rename.
        ranks: the processes of this job.
        stop: asked after each batch.
        progress: shows the images of all processes.

    Raises:
        ConfigError: if `out` cannot be written.
        Stopped: after a stop signal to any process, at the end of a batch.
    """
    folder, digest = store_folder(out), work.digest()
    store = BatchStore(folder / "batches", work.settings.batch, len(work.source))
    facts = {"arguments": (work.weights, out, work.settings), "data": work.source.fingerprint}
    try:
        require_agreement(ranks, {**facts, "weights": digest}, folder=folder)
        with open_store(store, digest, ranks=ranks, log=progress.note) as todo:
            compute_batches(store, todo, work, ranks=ranks, stop=stop, progress=progress)
            yield store
            if ranks.is_main_process:
                shutil.rmtree(folder)
    except OSError as error:
        raise ConfigError(
            f"out: {out} cannot be written: {error.strerror}; free some space or choose "
            "another path, and run the command again to resume"
        ) from error


@contextmanager
def open_store(
    store: BatchStore, work: str, *, ranks: Communicator, log: Log
) -> Iterator[Sequence[int]]:
    """Lock the store in rank 0, and give every rank the numbers of the batches to make.

    Args:
        store: finished batches; those of a job of other work are removed.
        work: digest of everything that determines the rows.
        ranks: the processes of this job.
        log: called with a line on what is resumed.
    """
    todo, folder = list[int](), store.folder.parent
    with ExitStack() as held:
        if ranks.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunLock(folder / "lock"))
            _discard_other_work(folder, work, log=log)
            store.folder.mkdir(exist_ok=True)
            todo = store.missing()
            if done := store.images - sum(len(store.ids(number)) for number in todo):
                log(f"resuming: {done:,} images are done")
        yield ranks.all_gather(todo)[0]


def compute_batches(
    store: BatchStore,
    todo: Sequence[int],
    work: Work,
    *,
    ranks: Communicator,
    stop: StopSignal,
    progress: Progress,
) -> None:
    """Compute the missing batches; the ranks meet after each, so that all stop at the same time."""
    left = sum(len(store.ids(number)) for number in todo)
    progress.start(store.images, at=store.images - left, label="image")
    for start in range(0, len(todo), ranks.process.world_size):
        together = todo[start : start + ranks.process.world_size]
        for number in ranks.process.shard(together):
            ids = store.ids(number)
            [got] = evaluation_batches(work.encoder, work.source, ids, batch=store.batch)
            store.write(number, work.compute(got.images), got)
        left -= sum(len(store.ids(number)) for number in together)
        progress.update(store.images - left)
        if requested := max(ranks.all_gather(stop.requested or 0)):
            stop.requested = requested
            raise stop.stopped(f"stopped: {store.images - left:,} images are done")


def _discard_other_work(folder: Path, work: str, *, log: Log) -> None:
    """Remove the batches of a stopped job with other inputs."""
    record, now = folder / "done.json", {"work": work}
    if record.exists():
        if json.loads(record.read_bytes()) == now:
            remove_stale_temporaries(folder / "batches")
            return
        log(
            "starting over: weights, images, settings or version differ from those of the last "
            "start"
        )
    if (folder / "batches").exists():
        shutil.rmtree(folder / "batches")
    (folder / "features").unlink(missing_ok=True)  # of an older version
    write_json_atomic(record, now)
