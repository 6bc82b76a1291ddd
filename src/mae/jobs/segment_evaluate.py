"""Score a segmenter on images with masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from mae.atomic import write_atomic
from mae.data.sources.splits import Kind
from mae.errors import ConfigError
from mae.evaluation.dense.segment import open_for_segmenting, score_images
from mae.evaluation.dense.segment_metrics import SegmentScores, segment_scores
from mae.evaluation.dense.segmented_data import segmented_for_evaluation
from mae.evaluation.inputs import FeatureSettings
from mae.parallel.processes import open_communicator
from mae.progress import Progress
from mae.report.notebook import shown
from mae.report.predictions import require_writable
from mae.report.scored_run import ScoredData
from mae.report.segments import draw_examples, evaluation_page, results_of, score_rows
from mae.weights.given import Given


@shown
class SegmentEvaluation(ScoredData[SegmentScores]):
    """Scores of a segmenter; each pixel of an image counts once."""

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        return score_rows(self.scores)


def segment_evaluate(
    weights: str | os.PathLike[str],
    *,
    data: str | Path,
    split: Kind | None = None,
    out: str | Path | None = None,
    max_bad: float = 0.1,
    device: str = "auto",
    quiet: bool = False,
    **given: Unpack[Given],
) -> SegmentEvaluation:
    """Score a segmenter at the size of the images; processes of torchrun divide them.

    Args:
        weights: run, folder or file of `segment_train`.
        data: images with masks, see `find_masked`; of the data of its own run, the held-out images.
        split: split to score; none: val, or test.
        out: .html page to write, with the table of classes and the worst images.
        max_bad: largest fraction of unusable masks.
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
        require_writable(page, option="out", ends=(".html",))
        if not 0 <= max_bad <= 1:
            raise ConfigError(f"max_bad: expected at least 0, at most 1, got {max_bad}")
        own = FeatureSettings(device=device).at(ranks.process).device
        model, view = open_for_segmenting(weights, device=own, given=given, log=progress.note)
        found = segmented_for_evaluation(
            data, classes=model.class_names, split=split, weights=weights, max_bad=max_bad,
            progress=progress, ranks=ranks,
        )  # fmt: skip
        for note in found.notes:
            progress.note(note)
        scored = score_images(model, found.source, view, progress=progress, ranks=ranks)
        result = SegmentEvaluation(
            data=os.fspath(data),
            part=found.part,
            images=len(scored.images),
            unreadable=scored.unreadable,
            scores=segment_scores(scored.confusion, model.class_names),
            written=() if page is None else (str(page),),
        )
        if page is not None and ranks.is_main_process:
            examples = draw_examples(model, found.source, scored, view)
            results = results_of(scored, result.scores, examples)
            write_atomic(page, evaluation_page(results, examples, title=f"Masks of {data}"))
        return result
