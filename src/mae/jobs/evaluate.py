"""Evaluate a fine-tuned classifier on labelled images or the ImageNet robustness sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from mae.atomic import write_atomic
from mae.config.model import refuse_without_effect
from mae.data.batching.batch import View
from mae.data.sources.source import Source
from mae.data.sources.splits import Kind
from mae.errors import ConfigError, DataError
from mae.evaluation.discover import some
from mae.evaluation.divided import tuned_on
from mae.evaluation.few_labels import Ids
from mae.evaluation.inputs import DEFAULT, FeatureSettings, labelled_in_batches, tell_view
from mae.evaluation.labelled_data import scored
from mae.evaluation.metrics import ClassRow, Verdicts, class_rows, joined, verdicts
from mae.evaluation.robustness import set_classes
from mae.model.classifier import Classifier
from mae.parallel.processes import SINGLE_PROCESS, Communicator, open_communicator
from mae.progress import Progress
from mae.report.confusion import Mistake, confusion_picture, evaluation_page, worst_mistakes
from mae.report.figures import png_bytes
from mae.report.predictions import Predicted, require_writable, write_predictions
from mae.weights.load import open_classifier

FolderSet = Literal["folder", "imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch"]
TOP = 5
IMAGENET_CLASSES = 1000
MOST_CLASSES = 20  # in the terminal table; --json and the HTML page list all
MOST_MISTAKES = 5


class Evaluation(NamedTuple):
    """Scores of a classifier on labelled images."""

    dataset: str
    data: str
    part: str
    """Which part of the data was evaluated: a split, what fine-tuning held out, or all."""
    pictures: int
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

    def values(self) -> dict[str, object]:
        """Return the values that --json prints."""
        rows = [
            row._asdict() | {"accuracy": row.accuracy if row.pictures else None}
            for row in self.classes
        ]
        mistakes = [mistake._asdict() for mistake in self.mistakes]
        return self._asdict() | {"classes": rows, "mistakes": mistakes}

    def facts(self) -> dict[str, str]:
        """Return the metrics as text, by name."""
        top5 = {} if self.top5 is None else {"top-5": f"{self.top5:.2%}"}
        out = {"unreadable": f"{len(self.unreadable):,}, left out"} if self.unreadable else {}
        figures = {"top-1": f"{self.top1:.2%}", **top5, "loss": f"{self.loss:.4f}"}
        said = {"set": f"{self.dataset}, {self.scored}", "pictures": f"{self.pictures:,}"}
        return figures | said | {"part": self.part} | out

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table: metrics, worst classes, most frequent mistakes."""
        there = [row for row in self.classes if row.pictures]
        worst = sorted(there, key=lambda row: row.accuracy)[:MOST_CLASSES]
        shown = worst if len(self.classes) > MOST_CLASSES else self.classes
        few = f"the {len(worst)} worst of {len(there)} classes" if len(there) > len(worst) else ""
        return [
            *self.facts().items(),
            *([(few,)] if few else []),
            *(
                (row.name, f"{row.accuracy:.1%}" if row.pictures else "", f"of {row.pictures:,}")
                + ((f"most often taken for {row.mistaken_for}",) if row.mistaken_for else ())
                for row in shown
            ),
            *(
                (f"{m.name} taken for {m.taken_for}: {m.times:,} ({m.share:.0%})",)
                for m in self.mistakes
            ),
            *(("written", path) for path in self.written),
        ]


class Judge(NamedTuple):
    """A classifier with its device, batch size and progress display."""

    model: Classifier
    class_names: Sequence[str]
    device: torch.device
    batch: int
    progress: Progress

    def verdicts(
        self,
        asked: Question,
        *,
        label: str = "picture",
        view: View | None = None,
        ranks: Communicator = SINGLE_PROCESS,
    ) -> Verdicts:
        """Classify every readable image; the processes of `ranks` split the images."""
        parts = []
        encoder = self.model.encoder
        pictures = labelled_in_batches(
            encoder, asked.source, np.arange(len(asked.source)),
            batch=self.batch, progress=self.progress, label=label, view=view, ranks=ranks,
        )  # fmt: skip
        for got in pictures:
            with torch.inference_mode():
                scores = self.model(encoder.normalize(got.images.to(self.device))).cpu()
            own = scores[:, torch.from_numpy(asked.scored)]
            parts.append(verdicts(own, labels=asked.places[got.labels], ids=got.ids))
        return joined([part for each in ranks.all_gather(parts) for part in each])


class Question(NamedTuple):
    """Labelled images and the classes that a classifier chooses from."""

    source: Source
    scored: Ids
    """Indices of the model's classes to choose from."""
    places: Ids
    """Position in `scored` of each class of the source."""
    about: str
    absent: Sequence[str] = ()
    """Classes of the model without any image."""

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Return the names of the classes in `scored`."""
        return [class_names[i] for i in self.scored]


def open_judge(weights: str | Path, settings: FeatureSettings, progress: Progress) -> Judge:
    """Load a classifier onto its device, and report the assumptions made."""
    device = settings.checked_device()
    given = settings.given or {}
    (model, class_names), notes = open_classifier(
        weights, pool=settings.head_pool, crop_pct=settings.crop_pct, **given
    )
    for note in notes:
        progress.note(note)
    return Judge(model.to(device).eval(), class_names, device, settings.batch, progress)


def evaluate(
    weights: str | Path,
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
        data: labelled images, see `scored`; of the data that the classifier was fine-tuned on,
            only the held-out part is used. Classes without images are allowed.
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
        _require_possible(dataset, all_classes=all_classes, out=out, predictions=predictions)
        source, part, notes = scored(data, split=split, tuned=tuned_on(weights))
        for note in notes:
            progress.note(note)
        judge = open_judge(weights, settings.at(ranks.process), progress)
        tell_view(judge.model.encoder.config, say=progress.note)
        asked = question(source, judge.class_names, dataset=dataset, all_classes=all_classes)
        found = judge.verdicts(asked, ranks=ranks)
        names = asked.names(judge.class_names)
        confusion = found.confusion(len(names))
        unreadable = sorted({*range(len(source))} - {*found.ids.tolist()})
        result = Evaluation(
            dataset=dataset,
            data=str(data),
            part=part,
            pictures=len(found),
            unreadable=tuple(source.name(i) for i in unreadable),
            scored=asked.about,
            top1=found.top(1),
            top5=found.top(TOP) if len(names) > TOP else None,
            loss=found.loss,
            classes=tuple(class_rows(confusion, names)),
            mistakes=tuple(worst_mistakes(confusion, names, most=MOST_MISTAKES)),
            written=tuple(str(path) for path in (out, predictions) if path is not None),
        )
        if predictions is not None and ranks.is_main_process:
            write_predictions(predictions, [Predicted(found, source.name, names)])
        if out is not None and ranks.is_main_process:
            picture = out.suffix == ".png"
            title = f"{Path(weights).name} on {Path(data).name}"
            page = png_bytes(confusion_picture(confusion)) if picture else b""
            write_atomic(out, page or evaluation_page(title, result.facts(), confusion, names))
    return result


def _require_possible(
    dataset: FolderSet, *, all_classes: bool, out: Path | None, predictions: Path | None
) -> None:
    require_writable(predictions)
    if out is not None and out.suffix not in (".png", ".html"):
        raise ConfigError(f"out: expected a name ending in .png or .html, got {out}")
    if dataset not in ("imagenet-a", "imagenet-r"):
        where = (f"the set {dataset}", "imagenet-a or imagenet-r")
        refuse_without_effect(*where, all_classes=all_classes or None)


def question(
    source: Source, class_names: Sequence[str], *, dataset: str, all_classes: bool
) -> Question:
    """Match the classes of a folder with those of a classifier, by name.

    Raises:
        DataError: if a folder matches no class of the classifier, or if the folders of
            imagenet-a or imagenet-r are not exactly their 200 classes.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    K, unknown = len(class_names), [name for name in source.class_names if name not in numbers]
    if unknown:
        raise DataError(
            f"data: {len(unknown)} of {len(source.class_names)} classes are unknown to the "
            f"classifier: {', '.join(unknown[:3])}; expected folders named as its {K} classes: "
            f"{', '.join(class_names[:3])} ..."
        )
    own = np.array([numbers[name] for name in source.class_names], dtype=np.int64)
    if dataset in ("imagenet-a", "imagenet-r"):
        if K != IMAGENET_CLASSES or sorted(own.tolist()) != set_classes(dataset):  # type: ignore[arg-type]
            raise DataError(
                f"data: {len(own)} folders, which are not the 200 classes of {dataset} among the "
                f"1,000 of ImageNet; the classifier has {K}. Check --data, or use --set folder"
            )
        if not all_classes:
            scored = np.sort(own)
            about = f"restricted to the scores of its {len(own)} classes"
            return Question(source, scored, np.searchsorted(scored, own), about)
        return Question(source, np.arange(K), own, f"the scores of all {K:,} classes compared")
    labels = () if source.labels is None else np.unique(source.labels).tolist()
    there = {source.class_names[label] for label in labels}
    absent = [name for name in class_names if name not in there]
    lacking = f", no image of {len(absent):,}: {some(absent, 3)}" if absent else ""
    return Question(source, np.arange(K), own, f"{K:,} classes{lacking}", absent)
