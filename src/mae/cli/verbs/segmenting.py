"""Verbs of semantic segmentation: segment train, evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mae.cli.verbs.shared import call, train_on
from mae.config.segment import SegmentConfig
from mae.weights.given import Given


def segment_train(
    recipe: str = "segment-folder",
    *,
    data: str | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    labels: str | None = None,
    resume_from: int | None = None,
    skip_steps: int = 0,
    given: Given,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> object:
    """Train classes of pixels from weights and masks; resumes an unfinished run.

    DATA holds images/ and masks/ with PNG files of the same names, whose values are the classes
    that classes.txt names, 255 for none; or images/ and a COCO .json; of them a fifth is held out.
    Or it holds such folders in train/ and val/. All masks are checked before training.

    Args:
        data: Folder of images with masks.
        out: Folder of the run; none: runs/DATA-NAME-segment.
        labels: Few masks: a fraction as in 10%, or a .csv of an earlier draw.
        resume_from: Step of an older checkpoint to go back to; none: the newest.
        skip_steps: Steps after it whose batches are not trained on, as after bad images.
    """
    return train_on("segment_train", SegmentConfig, {**locals()}, noun="masks")


def segment_evaluate(
    weights: Path,
    *,
    data: str,
    split: Literal["train", "val", "test"] | None = None,
    out: Path | None = None,
    max_bad: float = 0.1,
    device: str = "auto",
    given: Given,
    quiet: bool = False,
) -> object:
    """Score a segmenter: mIoU, mAcc, aAcc, and each class.

    Of the data of its own training, only the held-out part is scored.

    Args:
        weights: Run, folder or file of a segmenter.
        data: Folder of images with masks, as for segment train.
        split: Split to score; none: val or test, or the part that training held out.
        out: Page to write (.html), with the worst images beside their masks.
        max_bad: Largest fraction of masks that cannot be used.
    """
    asked = {**locals()}
    from mae.jobs.segment_evaluate import segment_evaluate as job

    return call(job, asked)


def segment_predict(
    weights: Path,
    *images: Path,
    out: Path = Path("segments"),
    device: str = "auto",
    given: Given,
    quiet: bool = False,
) -> object:
    """Segment images: overlays, masks of classes, and the area of each class.

    Args:
        weights: Run, folder or file of a segmenter.
        images: Image files, folders, packs, lists or .tar files.
        out: New folder for masks/, overlays/, classes.txt and summary.json.
    """
    asked = {**locals()}
    from mae.jobs.segment_predict import segment_predict as job

    return call(job, asked)
