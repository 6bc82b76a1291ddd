"""Score a detector on images with boxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from mae.atomic import write_atomic, write_json_atomic
from mae.data.decoding.header import kind_of
from mae.data.sources.splits import Kind
from mae.errors import ConfigError
from mae.evaluation.dense.detect import (
    open_for_detecting,
    require_detect_extra,
    score_boxes,
)
from mae.evaluation.dense.detected_data import detected_for_evaluation
from mae.evaluation.dense.detection_metrics import DetectorScores
from mae.evaluation.inputs import FeatureSettings
from mae.parallel.processes import open_communicator
from mae.progress import Progress
from mae.report.detections import draw_examples, evaluation_page, results_of, score_rows
from mae.report.notebook import shown
from mae.report.predictions import require_writable
from mae.report.scored_run import ScoredData
from mae.weights.given import Given


@shown
class DetectEvaluation(ScoredData[DetectorScores]):
    """Scores of a detector on images with boxes."""

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        return score_rows(self.scores)


def detect_evaluate(
    weights: str | os.PathLike[str],
    *,
    data: str | Path,
    split: Kind | None = None,
    out: str | Path | None = None,
    max_bad: float = 0.1,
    device: str = "auto",
    quiet: bool = False,
    **given: Unpack[Given],
) -> DetectEvaluation:
    """Score a detector; processes of torchrun divide the images.

    Args:
        weights: run, folder or file of `detect_train`.
        data: images with boxes, see `find_boxed`; of the data of its own run, the held-out images.
        split: split to score; none: val, or test.
        out: .html page to write, with tables and the most confident mistakes; or .json, with the
            detections in COCO's form.
        max_bad: largest fraction of images, and of boxes, that may be wrong.
        device: see `choose_device`.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    page = None if out is None else Path(out)
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        require_detect_extra()
        require_writable(page, option="out", ends=(".html", ".json"))
        if not 0 <= max_bad <= 1:
            raise ConfigError(f"max_bad: expected at least 0, at most 1, got {max_bad}")
        own = FeatureSettings(device=device).at(ranks.process).device
        model, view = open_for_detecting(weights, device=own, given=given, log=progress.note)
        found = detected_for_evaluation(
            data, classes=model.class_names, split=split, weights=weights, max_bad=max_bad,
            progress=progress, ranks=ranks,
        )  # fmt: skip
        for note in found.notes:
            progress.note(note)
        scored = score_boxes(model, found.source, view, progress=progress, ranks=ranks)
        result = DetectEvaluation(
            data=os.fspath(data),
            part=found.part,
            images=len(scored.images),
            unreadable=scored.unreadable,
            scores=scored.scores,
            written=() if page is None else (str(page),),
        )
        if page is None or not ranks.is_main_process:
            return result
        if page.suffix == ".json":
            write_json_atomic(page, scored.coco(model.class_names))
        else:
            examples = draw_examples(found.source, scored, kind_of(model.encoder.config))
            results = results_of(scored, examples)
            write_atomic(page, evaluation_page(results, examples, title=f"Boxes of {data}"))
        return result
