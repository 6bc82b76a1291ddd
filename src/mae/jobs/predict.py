"""Classify images without labels with a fine-tuned classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.atomic import write_atomic, write_json_atomic
from mae.config.model import ModelConfig
from mae.data.batching.batch import SourceReader
from mae.data.decoding.decode import decode
from mae.data.decoding.header import kind_of
from mae.data.sources.images import Images, open_images, open_inputs
from mae.data.sources.source import Source
from mae.data.types import Log
from mae.errors import ConfigError
from mae.evaluation.batch_store import FINISHING, Work, computed, store_folder
from mae.evaluation.classify import class_probabilities, open_for_evaluation
from mae.evaluation.discover import some
from mae.evaluation.inputs import (
    FeatureSettings,
    LabelledBatch,
    Weights,
    map_images,
    report_view,
    weights_name,
)
from mae.evaluation.split import Ids
from mae.parallel.processes import (
    Communicator,
    open_communicator,
    require_agreement,
)
from mae.progress import Progress
from mae.report.contact_sheet import grouped_sheet, shortened, thumbnail
from mae.report.figures import png_bytes
from mae.report.notebook import shown
from mae.report.parquet import ENDING
from mae.report.predictions import require_writable, write_predictions
from mae.runs.signals import StopSignal
from mae.train.resolve import Precision
from mae.weights.given import Given, HeadPool
from mae.weights.load import LoadedClassifier

MOST_IMAGES = 20
"""Images in the terminal table; --json and --out hold all."""
MOST_CLASSES = 20
"""Classes in the terminal table and on the sheet, the most frequent ones."""
MOST_ON_SHEET = 16
"""Images of a class on the sheet."""
LONGEST = 48
"""Letters of a path in the terminal table."""

Probabilities = NDArray[np.float64]


@shown
class Predicted(NamedTuple):
    """The classes that a classifier predicts for n images."""

    names: tuple[str, ...]
    """n: paths of the images; of images in memory, their numbers."""
    classes: tuple[str, ...]
    """n: the most likely class of each image."""
    probabilities: Probabilities
    """n K float64: probabilities of the K classes; the classes in the order of `class_names`."""
    class_names: tuple[str, ...]
    """K."""
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    top: int = 1
    """Classes that are printed and written of each image, the most likely ones."""
    written: tuple[str, ...] = ()
    """Paths of the files written."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each predicted class, the most frequent first."""
        return dict(Counter(self.classes).most_common())

    def columns(self) -> list[str]:
        """Return the names of the columns of `table`."""
        more = (f"{name}_{k}" for k in range(2, self.top + 1) for name in ("class", "probability"))
        return ["path", "class", "probability", *more]

    def table(self) -> Iterator[list[Any]]:
        """Yield the path of each image, and class and probability of its `top` classes."""
        for name, row in zip(self.names, self.probabilities, strict=True):
            likely = np.argsort(-row, kind="stable")[: self.top].tolist()
            yield [name, *(x for k in likely for x in (self.class_names[k], float(row[k])))]

    def values(self) -> dict[str, Any]:
        """Return the values to print with --json."""
        columns = self.columns()
        images = [dict(zip(columns, row, strict=True)) for row in self.table()]
        files = {"unreadable": self.unreadable, "written": self.written}
        return {"images": images, "counts": self.counts} | files

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: some images, the number of images of each class."""
        heads = [f"{k}. class" for k in range(2, self.top + 1)]
        yield ("path", "class", "probability", *(x for head in heads for x in (head, "")))
        for _, (name, *cells) in zip(range(MOST_IMAGES), self.table(), strict=False):
            shown = (f"{cell:.1%}" if isinstance(cell, float) else cell for cell in cells)
            yield (shortened(name, LONGEST), *shown)
        if (more := len(self.names) - MOST_IMAGES) > 0:
            files = [path for path in self.written if not path.endswith(".png")]
            where = f" in {files[0]}" if files else "; --out FILE.csv writes and --json prints all"
            yield (f"and {more:,} more{where}",)
        yield ("",)
        counts = self.counts
        yield "images", f"{len(self.names):,}"
        for name in [*counts][:MOST_CLASSES]:
            yield name, f"{counts[name]:,}", f"{counts[name] / len(self.names):.1%}"
        if (more := len(counts) - MOST_CLASSES) > 0:
            yield (f"and {more:,} more classes",)
        if self.unreadable:
            yield "unreadable", f"{len(self.unreadable):,}", some(self.unreadable, 3)
        yield from (("written", path) for path in self.written)


def predict(
    weights: Weights,
    images: Images,
    *,
    out: str | Path | None = None,
    top: int = 1,
    sort: Literal["uncertainty"] | None = None,
    sheet: str | Path | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    crop_pct: float | None = None,
    pool: HeadPool | None = None,
    quiet: bool = False,
    command: Sequence[str] = (),
    **given: Unpack[Given],
) -> Predicted:
    """Classify images with a fine-tuned classifier, in the evaluation view.

    Processes started by torchrun divide the batches; the result is bit-identical to that of one
    process. With `out`, each finished batch is kept, as by `mae embed`, and a repeated call resumes
    a stopped one.

    Args:
        weights: a fine-tuned classifier: run, folder or file.
        images: as for `embed`; a sequence of paths may name folders, packs and tar files, too.
        out: .csv, .json or .parquet to write, with a row for each image.
        top: classes of each image to print and write, the most likely ones.
        sort: "uncertainty": ascending by the probability of the predicted class, so that the
            largest 1 - probability comes first; none: in the order of the images.
        sheet: .png of thumbnails to write, grouped by predicted class.
        batch: images classified at a time.
        device: see `choose_device`.
        precision: of the encoder, see `set_precision`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        pool: what the head reads, where its file does not say.
        quiet: show no progress and no notes.
        command: the command that resumes the job, for the message of `Stopped`.
        given: what the weights do not say, see `Given`.

    Returns:
        The predictions, in rank 0; the other ranks get none. An unreadable image has no row: it is
        named in `unreadable`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: after a stop signal to any process, at the end of a batch; with `out` alone.
    """
    settings = FeatureSettings("mean", batch, device, crop_pct, given, pool, precision)
    out, sheet = (None if path is None else Path(path) for path in (out, sheet))
    stop = None if out is None else StopSignal(FINISHING, command=command)
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
        stop or nullcontext(),
    ):
        if sort not in (None, "uncertainty"):
            raise ConfigError(f"sort: expected uncertainty, got {sort!r}")
        ranks.on_main(partial(_require_targets, out, sheet))
        found = _open(weights, settings.at(ranks.process), log=progress.note)
        K = len(found.class_names)
        if not 1 <= top <= K:
            raise ConfigError(
                f"top: expected 1 to {K}, the classes of {weights_name(weights)}, got {top}"
            )
        source = _open_images(images, found.model.encoder.config, log=progress.note)
        task = _Task(weights_name(weights), found, source, settings)
        result = Predicted((), (), np.zeros((0, K)), found.class_names, (), top)
        with _probabilities(task, out, ranks=ranks, stop=stop, progress=progress) as (ids, rows):
            if ranks.is_main_process:
                if sort is not None:
                    order = np.argsort(rows.max(axis=1), kind="stable")
                    ids, rows = ids[order], rows[order]
                written = tuple(str(path) for path in (out, sheet) if path is not None)
                result = _predicted(ids, rows, source, result)._replace(written=written)
                if sheet is not None:
                    drawn = _sheet(result, ids, source, found.model.encoder.config)
                    write_atomic(sheet, png_bytes(drawn))
                if out is not None:
                    _write(out, result)
        return result


def _open_images(images: Images, config: ModelConfig, *, log: Log) -> Source:
    paths = [images] if isinstance(images, str | Path) else images
    if isinstance(paths, list | tuple) and all(isinstance(path, str | Path) for path in paths):
        return open_inputs(paths, config, log=log)
    return open_images(images, config, log=log)


def _require_targets(out: Path | None, sheet: Path | None) -> None:
    """Raise for files that cannot be written; a sheet may be left of a stopped start."""
    require_writable(out, option="out", ends=(".csv", ".json", ENDING))
    if sheet is not None and sheet.suffix != ".png":
        raise ConfigError(f"sheet: {sheet} ends in {sheet.suffix!r}, expected .png")
    begun = out is not None and store_folder(out).exists()
    for option, path in (("out", out), ("sheet", None if begun else sheet)):
        if path is not None and path.exists():
            raise ConfigError(
                f"{option}: {path} exists already; choose another, or remove it first"
            )


def _open(weights: Weights, settings: FeatureSettings, *, log: Log) -> LoadedClassifier:
    found = open_for_evaluation(weights, settings, log=log)
    report_view(found.model.encoder.config, log=log)
    return found


class _Task(NamedTuple):
    weights: str
    found: LoadedClassifier
    source: Source
    settings: FeatureSettings


@contextmanager
def _probabilities(
    task: _Task,
    out: Path | None,
    *,
    ranks: Communicator,
    stop: StopSignal | None,
    progress: Progress,
) -> Iterator[tuple[Ids, Probabilities]]:
    """Classify the images, and keep finished batches beside `out` until the block has ended.

    Yields:
        Ids n and probabilities n K of the readable images; with `out`, none but in rank 0.
    """
    weights, (model, names), source, settings = task
    if out is None or stop is None:
        arguments = (weights, settings)
        require_agreement(ranks, {"arguments": arguments, "data": source.fingerprint})
        yield _classify(task.found, source, settings, ranks, progress)
        return
    compute = partial(class_probabilities, model)
    work = Work(weights, model, model.encoder, source, settings, compute, what=list(names))
    with computed(work, out, ranks=ranks, stop=stop, progress=progress) as store:
        if ranks.is_main_process:
            ids, _ = store.readable(out, log=progress.note)
            yield ids, np.concatenate([*store.rows()])
        else:
            yield np.zeros(0, np.int64), np.zeros((0, len(names)))


def _classify(
    found: LoadedClassifier,
    source: Source,
    settings: FeatureSettings,
    ranks: Communicator,
    progress: Progress,
) -> tuple[Ids, Probabilities]:
    """Return ids n and probabilities n K of the readable images; the ranks divide the batches."""

    def compute(images: LabelledBatch) -> tuple[Ids, Probabilities]:
        return images.ids, class_probabilities(found.model, images.images)

    every = np.arange(len(source))
    ids, rows = map_images(
        compute,
        found.model.encoder,
        source,
        every,
        batch=settings.batch,
        progress=progress,
        label="image",
        ranks=ranks,
    )
    return ids, rows


def _predicted(ids: Ids, rows: Probabilities, source: Source, empty: Predicted) -> Predicted:
    missing = np.setdiff1d(np.arange(len(source)), ids)
    return empty._replace(
        names=tuple(source.name(i) for i in ids.tolist()),
        classes=tuple(empty.class_names[k] for k in rows.argmax(axis=1).tolist()),
        probabilities=rows,
        unreadable=tuple(source.name(i) for i in missing.tolist()),
    )


def _write(out: Path, result: Predicted) -> None:
    if out.suffix == ".json":
        values = result.values()
        del values["written"]
        write_json_atomic(out, values)
    else:
        write_predictions(out, [*result.table()], columns=result.columns())


def _sheet(result: Predicted, ids: Ids, source: Source, config: ModelConfig) -> Image.Image:
    """Draw some images of each predicted class, in the order of the result."""
    reader, use = SourceReader(source), partial(decode, kind=kind_of(config))
    classes, likely = np.array(result.classes), result.probabilities.max(axis=1)
    groups = list[tuple[str, list[tuple[str, Image.Image]]]]()
    for name, count in [*result.counts.items()][:MOST_CLASSES]:
        drawn = list[tuple[str, Image.Image]]()
        for row in np.flatnonzero(classes == name)[:MOST_ON_SHEET].tolist():
            if (pixels := reader.read(int(ids[row]), use)) is not None:
                file = shortened(Path(result.names[row]).stem, 11)
                drawn.append((f"{likely[row]:.1%} {file}", thumbnail(pixels)))
        some = f", {len(drawn)} of them" if len(drawn) < count else ""
        if drawn:
            groups.append((f"{name}: {count:,} image{'s' if count > 1 else ''}{some}", drawn))
    return grouped_sheet(groups)
