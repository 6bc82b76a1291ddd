"""Verbs of detection: detect train, evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mae.cli.verbs.shared import call, train_on
from mae.config.detect import DetectConfig
from mae.weights.given import Given


def detect_train(
    recipe: str = "detect-folder",
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
    """Train boxes and masks of objects from weights; resumes an unfinished run.

    DATA holds images/ and a COCO .json of instances; images/ and labels/ of YOLO; or JPEGImages/
    and Annotations/ of Pascal VOC; of them a fifth is held out. Or it holds such folders in train/
    and val/. All boxes are checked before training. Needs pip install 'mae-vision[detect]'.

    Args:
        data: Folder of images with boxes.
        out: Folder of the run; none: runs/DATA-NAME-detect.
        labels: Few images: a fraction as in 10%, or a .csv of an earlier draw.
        resume_from: Step of an older checkpoint to go back to; none: the newest.
        skip_steps: Steps after it whose batches are not trained on, as after bad images.
    """
    return train_on("detect_train", DetectConfig, {**locals()}, noun="boxes")


def detect_evaluate(
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
    """Score a detector: AP, AP50, AP75, by size and class, of boxes and masks.

    Of the data of its own training, only the held-out part is scored.

    Args:
        weights: Run, folder or file of a detector.
        data: Folder of images with boxes, as for detect train.
        split: Split to score; none: val or test, or the part that training held out.
        out: Page to write (.html), with the most confident mistakes; or all detections (.json).
        max_bad: Largest fraction of images, and of boxes, that may be wrong.
    """
    asked = {**locals()}
    from mae.jobs.detect_evaluate import detect_evaluate as job

    return call(job, asked)


def detect_predict(
    weights: Path,
    *images: Path,
    out: Path = Path("detections"),
    threshold: float = 0.5,
    crops: bool = False,
    device: str = "auto",
    given: Given,
    quiet: bool = False,
) -> object:
    """Find objects in images: overlays, boxes and masks in COCO's form, cut objects.

    Args:
        weights: Run, folder or file of a detector.
        images: Image files, folders, packs, lists or .tar files.
        out: New folder for overlays/, predictions.json and crops/.
        threshold: Lowest score of an object, 0 to 1.
        crops: Write each object, cut out, below crops/, a folder for each class.
    """
    asked = {**locals()}
    from mae.jobs.detect_predict import detect_predict as job

    return call(job, asked)
