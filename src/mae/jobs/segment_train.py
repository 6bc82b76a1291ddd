"""Train a segmenter from pre-trained weights on images with masks, and score it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mae.atomic import write_atomic, write_json_atomic
from mae.config.segment import SegmentConfig
from mae.data.segmentation.source import MaskSource
from mae.evaluation.dense.annotated_run import open_annotated_run
from mae.evaluation.dense.segment import SegmentView, score_images
from mae.evaluation.dense.segment_metrics import SegmentScores, segment_scores
from mae.evaluation.dense.segmented_data import segmented
from mae.model.dense.segmenter import Segmenter
from mae.recipes.segmenting import choose_crop
from mae.report.figures import png_bytes
from mae.report.notebook import shown
from mae.report.page import write_report
from mae.report.scored_run import ScoredRun
from mae.report.segments import draw_examples, results_of, score_rows
from mae.train.call import TrainingCall, open_call
from mae.train.measure import step_recipe
from mae.train.resolve import batch_plan, device_of
from mae.train.session import RunInProgress, finish, restore
from mae.train.trainer import train
from mae.weights.formats.native import save
from mae.weights.load import load_segmenter
from mae.weights.start_from import initial_segmenter


@shown
class SegmentRun(ScoredRun[SegmentConfig, SegmentScores, Segmenter]):
    """A finished run of semantic segmentation; each pixel of a test image is scored once."""

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        return score_rows(self.scores)


def segment_train(
    recipe: str | SegmentConfig = "segment-folder",
    *,
    data: str | Path,
    weights: str | os.PathLike[str] | None = None,
    out: str | Path | None = None,
    labels: str | None = None,
    resume_from: int | None = None,
    skip_steps: int = 0,
    finished_too: bool = True,
    quiet: bool = False,
    command: Sequence[str] = (),
    based_on: str = "custom",
    kept: Collection[str] | None = None,
    **fields: Any,
) -> SegmentRun:
    """Train a segmenter on a pre-trained encoder, or resume a run of the same configuration.

    An unfinished run is resumed; a finished run is returned unchanged. The processes of a job
    started by torchrun divide each batch; rank 0 writes.

    Args:
        recipe: name of a recipe, or a configuration.
        data: images with masks, see `find_masked`; without splits, a fifth is held out.
        weights: whatever `load_encoder` takes, or a finished run; none: a new network.
        out: run directory; `runs/DATA-NAME-segment` if none.
        labels: few masks: a fraction as in "10%", or a .csv of an earlier draw; none: all.
        resume_from: step of an older checkpoint of an unfinished run to go back to; the same
            call again resumes from the newest.
        skip_steps: number of steps after it whose batches are not trained on; they count as steps.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        kept: names of the fields of `recipe` that the user set, where it is made from the recipe
            segment-folder, which chooses the crop by weights and device.
        fields: fields of the recipe to change, by the names of the options with `_` for `-`; and
            what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    with open_call(
        segment_train, SegmentConfig, recipe, fields, data=data, weights=weights, out=out,
        suffix="-segment", resume_from=resume_from, skip_steps=skip_steps,
        finished_too=finished_too, quiet=quiet, command=command, based_on=based_on, kept=kept,
    ) as call:  # fmt: skip
        how = call.split | {"max_bad": call.config.max_bad, "progress": call.progress}
        parts = segmented(data, ranks=call.ranks, **how)
        classes, choose = parts.train.mask_classes, partial(_chosen, call)
        with open_annotated_run(call, parts, choose, classes=classes, labels=labels) as run:
            assert isinstance(run.config, SegmentConfig)
            if run.record["finished"]:
                model = load_segmenter(run.rundir.weights, quiet=True)
            else:
                model, notes = initial_segmenter(call.weights, run.config, **call.given)
                model.class_names = classes
                for note in notes:
                    call.progress.note(note)
                _train(run, model, run.config, parts.test)
            results = json.loads(run.rundir.results.read_bytes())
            return SegmentRun(
                run.rundir.path, run.config, run.record["num_steps"], run.resumed,
                run.record["data"]["count"], results["images"], SegmentScores.of(results), model,
            )  # fmt: skip


def _chosen(call: TrainingCall[SegmentConfig]) -> SegmentConfig:
    """Return the configuration with the crop and scale that the recipe segment-folder chooses."""
    config, kept = call.config, call.kept
    if kept is None or (config.follow_weights and call.weights is None):
        return config
    if not config.follow_weights:
        short = config.short_side if "short_side" in kept else min(config.model.image_size)
        return replace(config, short_side=short)
    return call.choose_by_weights(choose_crop, "short_side")


def _train(run: RunInProgress, model: Segmenter, config: SegmentConfig, test: MaskSource) -> None:
    """Train from the newest checkpoint to the last step, score, write weights and report."""
    (H, W), (low, high), view = config.model.image_size, config.scale_range, SegmentView.of(config)
    run.progress.note(
        f"crops of {H} x {W} at {low:g} to {high:g} times the size; scored: {view.text()}"
    )
    state = restore(run, model)
    plan = batch_plan(config, run.source, run.kind, run.ranks.process)
    train(run, state, plan, step_recipe(config, plan, device_of(state)))
    found = score_images(model.eval(), test, view, progress=run.progress, ranks=run.ranks)

    def write() -> None:
        scores = segment_scores(found.confusion, test.mask_classes)
        examples = draw_examples(model, test, found, view)
        for example in chain(*examples.values()):
            write_atomic(run.rundir.images / example.file, png_bytes(example.panels))
        write_json_atomic(run.rundir.results, results_of(found, scores, examples))
        facts = {name: run.record[name] for name in ("recipe", "data", "weights", "num_steps")}
        model.cpu()
        save(model, run.rundir.weights, facts=facts | {"view": view.facts()})
        write_report(run.rundir.path)
        finish(run, model, written=load_segmenter(run.rundir.weights, quiet=True))

    run.ranks.on_main(write)
    model.cpu()
