"""Train a detector from pre-trained weights on images with boxes, and score it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mae.atomic import write_atomic, write_json_atomic
from mae.config.detect import DetectConfig
from mae.data.detection.source import BoxSource
from mae.evaluation.dense.annotated_run import open_annotated_run
from mae.evaluation.dense.detect import DetectView, require_detect_extra, score_boxes
from mae.evaluation.dense.detected_data import detected
from mae.evaluation.dense.detection_metrics import DetectorScores
from mae.recipes.detecting import ON_CPU, choose_sizes
from mae.report.detections import draw_examples, results_of, score_rows
from mae.report.figures import png_bytes
from mae.report.notebook import shown
from mae.report.page import write_report
from mae.report.scored_run import ScoredRun
from mae.train.call import TrainingCall, open_call
from mae.train.measure import step_recipe
from mae.train.resolve import batch_plan, device_of
from mae.train.session import RunInProgress, finish, restore
from mae.train.trainer import train
from mae.transfer.detector import Detector
from mae.weights.formats.native import save
from mae.weights.load import load_detector
from mae.weights.start_detector import initial_detector


@shown
class DetectRun(ScoredRun[DetectConfig, DetectorScores, Detector]):
    """A finished run of detection, and the scores of boxes and masks on its test images."""

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of scores and classes."""
        return score_rows(self.scores)


def detect_train(
    recipe: str | DetectConfig = "detect-folder",
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
) -> DetectRun:
    """Train a detector on a pre-trained encoder, or resume a run of the same configuration.

    An unfinished run is resumed; a finished run is returned unchanged. The processes of a job
    started by torchrun divide each batch; rank 0 writes.

    Args:
        recipe: name of a recipe, or a configuration.
        data: images with boxes, see `find_boxed`; without splits, a fifth is held out.
        weights: whatever `load_encoder` takes, a detector, or a finished run; none: a new network.
        out: run directory; `runs/DATA-NAME-detect` if none.
        labels: few images: a fraction as in "10%", or a .csv of an earlier draw; none: all.
        resume_from: step of an older checkpoint of an unfinished run to go back to; the same
            call again resumes from the newest.
        skip_steps: number of steps after it whose batches are not trained on; they count as steps.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        kept: names of the fields of `recipe` that the user set, where it is made from the recipe
            detect-folder, which chooses the others by weights and device.
        fields: fields of the recipe to change, by the names of the options with `_` for `-`; and
            what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    require_detect_extra()
    with open_call(
        detect_train, DetectConfig, recipe, fields, data=data, weights=weights, out=out,
        suffix="-detect", resume_from=resume_from, skip_steps=skip_steps,
        finished_too=finished_too, quiet=quiet, command=command, based_on=based_on, kept=kept,
    ) as call:  # fmt: skip
        how = call.split | {"max_bad": call.config.max_bad, "progress": call.progress}
        parts = detected(data, ranks=call.ranks, **how)
        classes, choose = parts.train.box_classes, partial(_chosen, call)
        with open_annotated_run(call, parts, choose, classes=classes, labels=labels) as run:
            assert isinstance(run.config, DetectConfig)
            if run.record["finished"]:
                model = load_detector(run.rundir.weights, quiet=True)
            else:
                model, notes = initial_detector(call.weights, run.config, **call.given)
                model.class_names = classes
                for note in notes:
                    call.progress.note(note)
                _train(run, model, run.config, parts.test)
            results = json.loads(run.rundir.results.read_bytes())
            return DetectRun(
                run.rundir.path, run.config, run.record["num_steps"], run.resumed,
                run.record["data"]["count"], results["images"], DetectorScores.of(results), model,
            )  # fmt: skip


def _chosen(call: TrainingCall[DetectConfig]) -> DetectConfig:
    """Return the configuration with the crop and heads that the recipe detect-folder chooses."""
    config = call.config
    if call.kept is None or (config.follow_weights and call.weights is None):
        return config
    return call.choose_by_weights(choose_sizes, *ON_CPU)


def _train(run: RunInProgress, model: Detector, config: DetectConfig, test: BoxSource) -> None:
    """Train from the newest checkpoint to the last step, score, write weights and report."""
    (H, W), (low, high) = config.model.image_size, config.scale_range
    view = DetectView((H, W))
    run.progress.note(
        f"crops of {H} x {W} at {low:g} to {high:g} times what just fits, heads of "
        f"{config.pyramid_channels} channels, {config.sampled_boxes} boxes of an image in the "
        f"losses; scored: {view.text()}"
    )
    state = restore(run, model)
    plan = batch_plan(config, run.source, run.kind, run.ranks.process)
    train(run, state, plan, step_recipe(config, plan, device_of(state)))
    found = score_boxes(model.eval(), test, view, progress=run.progress, ranks=run.ranks)

    def write() -> None:
        examples = draw_examples(test, found, run.kind)
        for example in chain(*examples.values()):
            write_atomic(run.rundir.images / example.file, png_bytes(example.panels))
        write_json_atomic(run.rundir.results, results_of(found, examples))
        write_json_atomic(run.rundir.detections, found.coco(test.box_classes))
        facts = {name: run.record[name] for name in ("recipe", "data", "weights", "num_steps")}
        model.cpu()
        save(model, run.rundir.weights, facts=facts | {"view": view.facts()})
        write_report(run.rundir.path)
        finish(run, model, written=load_detector(run.rundir.weights, quiet=True))

    run.ranks.on_main(write)
    model.cpu()
