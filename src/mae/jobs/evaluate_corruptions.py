"""ImageNet-C evaluation: errors under 15 corruptions at five severities, and the mCE."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from mae.data.augment.crop import central_pixels
from mae.errors import DataError
from mae.evaluation.classify import classify, find_candidates, open_for_evaluation
from mae.evaluation.discover import class_folders, some
from mae.evaluation.inputs import DEFAULT, FeatureSettings
from mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    SEVERITIES,
    corruption_error,
    mean_corruption_error,
)
from mae.parallel.processes import open_communicator
from mae.progress import Progress
from mae.report.predictions import (
    PredictionRow,
    prediction_rows,
    require_writable,
    write_predictions,
)


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
        _require_folders(root)
        if others := sorted(p.name for p in root.iterdir() if p.name not in ALEXNET_ERRORS):
            progress.note(f"left out, none of the 15 corruptions: {', '.join(others)}")
        settings = settings.at(ranks.process)
        model, class_names = open_for_evaluation(weights, settings, log=progress.note)
        # ImageNet-C images are already 224 x 224: resizing would weaken the corruption.
        run = partial(classify, batch=settings.batch, progress=progress, view=central_pixels)
        for name, severity in _conditions():
            folder = f"{name}/{severity}"
            source = class_folders(root / folder)
            candidates = find_candidates(
                source, class_names, dataset="imagenet-c", all_classes=False
            )
            incomplete += [folder] if candidates.absent else []
            label = f"{name} {severity}/{SEVERITIES}, image"
            found = run(model, source, candidates, label=label, ranks=ranks)
            errors[name].append(1 - found.top(1))
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


def _conditions() -> list[tuple[str, int]]:
    return [*product(ALEXNET_ERRORS, range(1, SEVERITIES + 1))]


def _require_folders(root: Path) -> None:
    """Require all 75 folders before the long evaluation starts."""
    folders = [f"{name}/{severity}" for name, severity in _conditions()]
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(
            f"data: {len(missing)} of {len(folders)} folders of ImageNet-C are not in {root}: "
            f"{', '.join(missing[:3])}; expected CORRUPTION/SEVERITY/CLASS/... of 15 corruptions"
        )
