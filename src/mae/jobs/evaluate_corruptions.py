"""ImageNet-C evaluation: errors under 15 corruptions at five severities, and the mCE."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from mae.data.augment.crop import central_pixels
from mae.data.sources.source import Source
from mae.errors import DataError
from mae.evaluation.discover import class_folders, some
from mae.evaluation.inputs import DEFAULT, FeatureSettings
from mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    SEVERITIES,
    corruption_error,
    mean_corruption_error,
)
from mae.jobs.evaluate import open_judge, question
from mae.parallel.processes import open_communicator
from mae.progress import Progress
from mae.report.predictions import Predicted, require_writable, write_predictions


class Corruption(NamedTuple):
    """Errors of a classifier under one corruption."""

    name: str
    errors: tuple[float, ...]
    """At each severity, 0 to 1."""
    ce: float
    """Mean of `errors` divided by the mean of AlexNet's: 1 is as good as AlexNet."""


class Robustness(NamedTuple):
    """Errors of a classifier under all corruptions."""

    data: str
    mce: float
    """Mean of the corruption errors `ce`: 1 is as good as AlexNet."""
    error: float
    """Mean error, 0 to 1, not divided by AlexNet's."""
    corruptions: tuple[Corruption, ...]
    pictures: int
    """Evaluated, each once."""
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    written: tuple[str, ...]

    def values(self) -> dict[str, object]:
        """Return the values that --json prints."""
        return self._asdict() | {"corruptions": [each._asdict() for each in self.corruptions]}

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table."""
        out = [("unreadable", f"{len(self.unreadable):,}, left out")] if self.unreadable else []
        return [
            ("mCE", f"{100 * self.mce:.1f}", "errors divided by AlexNet's, mean of 15 corruptions"),
            ("mean error", f"{self.error:.1%}", "not divided"),
            ("pictures", f"{self.pictures:,}", "central 224 x 224 pixels, not resized"),
            *out,
            *(
                (each.name, f"CE {100 * each.ce:.1f}", f"error {fmean(each.errors):.1%}",
                 "  ".join(f"{error:.1%}" for error in each.errors))
                for each in self.corruptions
            ),
            *(("written", path) for path in self.written),
        ]  # fmt: skip


def evaluate_corruptions(
    weights: str | Path,
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
    errors: dict[str, list[float]] = {}
    parts: list[Predicted] = []
    unreadable: list[str] = []
    lacking: list[str] = []
    pictures = 0
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        require_writable(predictions)
        root = Path(data)
        _require_folders(root)
        if others := sorted(p.name for p in root.iterdir() if p.name not in ALEXNET_ERRORS):
            progress.note(f"left out, none of the 15 corruptions: {', '.join(others)}")
        judge = open_judge(weights, settings.at(ranks.process), progress)
        for name, severity in _conditions():
            source = class_folders(root / name / str(severity))
            asked = question(source, judge.class_names, dataset="imagenet-c", all_classes=False)
            lacking += [f"{name}/{severity}"] if asked.absent else []
            label = f"{name} {severity}/{SEVERITIES}, picture"
            # ImageNet-C images are already 224 x 224: resizing would weaken the corruption.
            found = judge.verdicts(asked, label=label, view=central_pixels, ranks=ranks)
            errors.setdefault(name, []).append(1 - found.top(1))
            named = partial(_named, source, f"{name}/{severity}")
            left_out = sorted({*range(len(source))} - {*found.ids.tolist()})
            unreadable += [named(i) for i in left_out]
            pictures += len(found)
            if predictions is not None:
                parts.append(Predicted(found, named, asked.names(judge.class_names)))
        if lacking:
            progress.note(f"no image of some classes in {len(lacking)} folders: {some(lacking, 3)}")
        if predictions is not None and ranks.is_main_process:
            write_predictions(predictions, parts)
    return Robustness(
        data=str(data),
        mce=mean_corruption_error(errors),
        error=fmean(fmean(each) for each in errors.values()),
        corruptions=tuple(
            Corruption(name, tuple(each), corruption_error(each, name))
            for name, each in errors.items()
        ),
        pictures=pictures,
        unreadable=tuple(unreadable),
        written=() if predictions is None else (str(predictions),),
    )


def _conditions() -> list[tuple[str, int]]:
    return [(name, s) for name in ALEXNET_ERRORS for s in range(1, SEVERITIES + 1)]


def _named(source: Source, prefix: str, index: int) -> str:
    return f"{prefix}/{source.name(index)}"


def _require_folders(root: Path) -> None:
    """Require all 75 folders before the long evaluation starts."""
    folders = [f"{name}/{severity}" for name, severity in _conditions()]
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(
            f"data: {len(missing)} of {len(folders)} folders of ImageNet-C are not in {root}: "
            f"{', '.join(missing[:3])}; expected CORRUPTION/SEVERITY/CLASS/... of 15 corruptions"
        )
