"""Evaluate a fine-tuned classifier on labelled images and the ImageNet robustness sets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple, Unpack

from torch import nn

from mae.atomic import write_atomic
from mae.config.model import refuse_without_effect
from mae.data.augment.crop import central_pixels
from mae.data.decoding.header import kind_of
from mae.data.sources.splits import Kind
from mae.errors import ConfigError, DataError
from mae.evaluation.classify import TOP, classify, find_candidates, open_for_evaluation
from mae.evaluation.discover import class_folders, some
from mae.evaluation.inputs import DEFAULT, FeatureSettings, Weights, report_view, weights_name
from mae.evaluation.labelled_data import evaluation_data
from mae.evaluation.metrics import ClassRow, class_rows
from mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    SEVERITIES,
    corruption_error,
    mean_corruption_error,
)
from mae.parallel.processes import open_communicator, require_agreement
from mae.progress import Progress
from mae.report.confusion import Mistake, confusion_image, evaluation_page, worst_mistakes
from mae.report.figures import png_bytes
from mae.report.mistakes import wrong_images
from mae.report.notebook import shown
from mae.report.predictions import (
    PredictionRow,
    prediction_rows,
    require_writable,
    write_predictions,
)
from mae.report.tables import value_rows
from mae.train.resolve import Precision
from mae.weights.given import Given, HeadPool

FolderSet = Literal["folder", "imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch"]
MOST_CLASSES = 20  # in the terminal table; --json and the HTML page list all
MOST_MISTAKES = 5
IN_MEMORY = (
    "weights: a classifier in memory does not say which images it was fine-tuned on; give the run "
    "to score only those that it held out"
)


@shown
class Evaluation(NamedTuple):
    """Scores of a classifier on labelled images."""

    dataset: str
    data: str
    part: str
    """Which part of the data was evaluated: a split, what fine-tuning held out, or all."""
    images: int
    """Evaluated, each once."""
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    scored: str
    """Which classes were compared."""
    top1: float
    top5: float | None
    """None where at most five classes were compared."""
    loss: float
    classes: tuple[ClassRow, ...]
    """One row for each compared class."""
    mistakes: tuple[Mistake, ...]
    written: tuple[str, ...]

    def facts(self) -> dict[str, str]:
        """Return the metrics as text, by name."""
        names = ("top1", "top5", "loss", "dataset", "scored", "images", "part")
        values = {name: getattr(self, name) for name in names}
        return dict(value_rows(values | {"unreadable": len(self.unreadable) or None}))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table: metrics, worst classes, most frequent mistakes."""
        rows: list[tuple[str, ...]] = [*self.facts().items()]
        shown, present = self.classes, [row for row in self.classes if row.images]
        if len(shown) > MOST_CLASSES:
            shown = tuple(sorted(present, key=lambda row: row.accuracy)[:MOST_CLASSES])
            if len(present) > len(shown):
                rows.append((f"the {len(shown)} worst of {len(present)} classes",))
        for row in shown:
            mistaken = (f"most often taken for {row.mistaken_for}",) if row.mistaken_for else ()
            accuracy = f"{row.accuracy:.1%}" if row.images else ""
            rows.append((row.name, accuracy, f"of {row.images:,}", *mistaken))
        for m in self.mistakes:
            rows.append((f"{m.name} taken for {m.taken_for}: {m.times:,} ({m.share:.0%})",))
        return rows + [("written", path) for path in self.written]


def evaluate(
    weights: Weights,
    data: str | Path,
    *,
    set: FolderSet | Literal["imagenet-c"] = "folder",
    all_classes: bool = False,
    split: Kind | None = None,
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    crop_pct: float | None = None,
    pool: HeadPool | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> Evaluation | Robustness:
    """Score a fine-tuned classifier, overall and per class; or its errors on ImageNet-C.

    Args:
        weights: a fine-tuned classifier: run, folder or file.
        data: see `evaluate_classes`; for "imagenet-c", see `evaluate_corruptions`.
        set: dataset in `data`, which determines the classes and the view.
        all_classes: see `evaluate_classes`.
        split: split to score; none: val or test, or the part that fine-tuning held out.
        out: .png of the confusion matrix, or .html of the whole report.
        predictions: .csv or .parquet to write, one row per image.
        batch: images classified at a time.
        device: see `choose_device`.
        precision: of the encoder, see `set_precision`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        pool: what the head reads, where its file does not say.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    settings = FeatureSettings("mean", batch, device, crop_pct, given, pool, precision)
    rows = None if predictions is None else Path(predictions)
    if set == "imagenet-c":
        refuse_without_effect(
            set, "another set", out=out, all_classes=all_classes or None, split=split,
            crop_pct=crop_pct,
        )  # fmt: skip
        return evaluate_corruptions(weights, data, settings=settings, predictions=rows, quiet=quiet)
    return evaluate_classes(
        weights, data, dataset=set, all_classes=all_classes, split=split,
        out=None if out is None else Path(out), predictions=rows, settings=settings, quiet=quiet,
    )  # fmt: skip


def evaluate_classes(
    weights: Weights,
    data: str | Path,
    *,
    dataset: FolderSet = "folder",
    all_classes: bool = False,
    split: Kind | None = None,
    out: Path | None = None,
    predictions: Path | None = None,
    settings: FeatureSettings = DEFAULT,
    quiet: bool = False,
) -> Evaluation:
    """Classify every labelled image and compute accuracy, loss and confusion.

    Processes started by torchrun split the images; all return the same metrics, bit-identical to
    those of one process, and the first process writes the files.

    Args:
        weights: folder of a fine-tuned classifier.
        data: labelled images, see `evaluation_data`; of the data that the classifier was
            fine-tuned on, only the held-out part is used. Classes without images are allowed.
        dataset: type of the data: imagenet-a and imagenet-r restrict the choice to their 200 of
            1,000 classes; the others use all classes of the classifier.
        all_classes: choose among all classes, also for imagenet-a and imagenet-r.
        split: split to evaluate instead; "train" of the classifier's own data is its training
            set.
        out: .png of the confusion matrix, or .html of the whole report.
        predictions: .csv or .parquet to write, one row per image.
        settings: batch, device and view.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        require_writable(predictions)
        if out is not None and out.suffix not in (".png", ".html"):
            raise ConfigError(f"out: expected a name ending in .png or .html, got {out}")
        if dataset not in ("imagenet-a", "imagenet-r"):
            there = "imagenet-a or imagenet-r"
            refuse_without_effect(f"the set {dataset}", there, all_classes=all_classes or None)
        source, part, notes = evaluation_data(data, split=split, weights=weights)
        if isinstance(weights, nn.Module):
            progress.note(IN_MEMORY)
        for note in notes:
            progress.note(note)
        arguments = (weights_name(weights), dataset, all_classes, split, settings)
        require_agreement(ranks, {"arguments": arguments, "data": source.fingerprint})
        settings = settings.at(ranks.process)
        model, class_names = open_for_evaluation(weights, settings, log=progress.note)
        report_view(model.encoder.config, log=progress.note)
        candidates = find_candidates(source, class_names, dataset=dataset, all_classes=all_classes)
        found = classify(
            model, source, candidates, batch=settings.batch, progress=progress, ranks=ranks
        )
        names = candidates.names(class_names)
        confusion = found.confusion(len(names))
        result = Evaluation(
            dataset=dataset,
            data=str(data),
            part=part,
            images=len(found),
            unreadable=found.unreadable(source),
            scored=candidates.about,
            top1=found.top(1),
            top5=found.top(TOP) if len(names) > TOP else None,
            loss=found.loss,
            classes=tuple(class_rows(confusion, names)),
            mistakes=tuple(worst_mistakes(confusion, names, most=MOST_MISTAKES)),
            written=tuple(str(path) for path in (out, predictions) if path is not None),
        )
        rows = prediction_rows(found, source, names) if ranks.is_main_process else []
        if predictions is not None and ranks.is_main_process:
            write_predictions(predictions, rows)
        if out is not None and ranks.is_main_process:
            if out.suffix == ".png":
                write_atomic(out, png_bytes(confusion_image(confusion)))
            else:
                title = f"{Path(weights_name(weights)).name} on {Path(data).name}"
                wrong = wrong_images(found, rows, source, kind_of(model.encoder.config))
                write_atomic(out, evaluation_page(title, result.facts(), confusion, names, wrong))
    return result


class Corruption(NamedTuple):
    """Errors of a classifier under one corruption."""

    name: str
    errors: tuple[float, ...]
    """At each severity, 0 to 1."""
    ce: float
    """Mean of `errors` divided by the mean of AlexNet's: 1 is as good as AlexNet."""


@shown
class Robustness(NamedTuple):
    """Errors of a classifier under all corruptions."""

    data: str
    mce: float
    """Mean of the corruption errors `ce`: 1 is as good as AlexNet."""
    error: float
    """Mean error, 0 to 1, not divided by AlexNet's."""
    corruptions: tuple[Corruption, ...]
    images: int
    """Evaluated, each once."""
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    written: tuple[str, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table."""
        rows: list[tuple[str, ...]] = [
            ("mCE", f"{100 * self.mce:.1f}", "errors divided by AlexNet's, mean of 15 corruptions"),
            ("mean error", f"{self.error:.1%}", "not divided"),
            ("images", f"{self.images:,}", "central 224 x 224 pixels, not resized"),
        ]
        if self.unreadable:
            rows.append(("unreadable", f"{len(self.unreadable):,}, left out"))
        for name, errors, ce in self.corruptions:
            each = "  ".join(f"{error:.1%}" for error in errors)
            rows.append((name, f"CE {100 * ce:.1f}", f"error {fmean(errors):.1%}", each))
        return rows + [("written", path) for path in self.written]


def evaluate_corruptions(
    weights: Weights,
    data: str | Path,
    *,
    predictions: Path | None = None,
    settings: FeatureSettings = DEFAULT,
    quiet: bool = False,
) -> Robustness:
    """Classify every image of ImageNet-C; several processes split the work as in `evaluate`.

    Args:
        weights: folder of a fine-tuned classifier.
        data: folder of CORRUPTION/SEVERITY/CLASS/...; corruptions other than the 15 are ignored.
        predictions: .csv or .parquet to write, one row per image.
        settings: batch and device.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    errors: dict[str, list[float]] = {name: [] for name in ALEXNET_ERRORS}
    rows: list[PredictionRow] = []
    unreadable: list[str] = []
    incomplete: list[str] = []
    images = 0
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        require_writable(predictions)
        root = Path(data)
        folders = _corruption_folders(root)
        if others := sorted(p.name for p in root.iterdir() if p.name not in ALEXNET_ERRORS):
            progress.note(f"left out, none of the 15 corruptions: {', '.join(others)}")
        settings = settings.at(ranks.process)
        model, class_names = open_for_evaluation(weights, settings, log=progress.note)
        # ImageNet-C images are already 224 x 224: resizing would weaken the corruption.
        run = partial(classify, batch=settings.batch, progress=progress, view=central_pixels)
        for folder in folders:
            source = class_folders(root / folder)
            candidates = find_candidates(source, class_names)
            incomplete += [folder] if candidates.absent else []
            found = run(model, source, candidates, label=f"{folder}, image", ranks=ranks)
            errors[folder.partition("/")[0]].append(1 - found.top(1))
            unreadable += [f"{folder}/{image}" for image in found.unreadable(source)]
            images += len(found)
            if predictions is not None:
                names = candidates.names(class_names)
                rows += prediction_rows(found, source, names, prefix=f"{folder}/")
        if incomplete:
            few = some(incomplete, 3)
            progress.note(f"no image of some classes in {len(incomplete)} folders: {few}")
        if predictions is not None and ranks.is_main_process:
            write_predictions(predictions, rows)
    return Robustness(
        data=str(data),
        mce=mean_corruption_error(errors),
        error=fmean(map(fmean, errors.values())),
        corruptions=tuple(
            Corruption(name, tuple(each), corruption_error(each, name))
            for name, each in errors.items()
        ),
        images=images,
        unreadable=tuple(unreadable),
        written=() if predictions is None else (str(predictions),),
    )


def _corruption_folders(root: Path) -> list[str]:
    """Return the 75 folders of ImageNet-C; all are required before the long evaluation starts."""
    levels = range(1, SEVERITIES + 1)
    folders = [f"{name}/{level}" for name in ALEXNET_ERRORS for level in levels]
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(
            f"data: {len(missing)} of {len(folders)} folders of ImageNet-C are not in {root}: "
            f"{', '.join(missing[:3])}; expected CORRUPTION/SEVERITY/CLASS/... of 15 corruptions"
        )
    return folders
