"""Train a segmenter from pre-trained weights on images with masks, and score it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from mae.atomic import write_atomic, write_json_atomic
from mae.config.segment import SegmentConfig
from mae.data.segmentation.source import MaskSource
from mae.data.sources.open import data_name
from mae.errors import ConfigError
from mae.evaluation.few_labels import FewLabels, write_choice
from mae.evaluation.segment import SegmentView, score_images
from mae.evaluation.segment_metrics import SCORES, SegmentScores, segment_scores
from mae.evaluation.segmented_data import SegmentedData, segmented
from mae.model.dense.segmenter import Segmenter
from mae.parallel.processes import Communicator, open_communicator
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.recipes.custom import kept_fields
from mae.recipes.segmenting import choose_crop
from mae.report.figures import png_bytes
from mae.report.notebook import run_html, shown
from mae.report.page import write_report
from mae.report.segments import draw_examples, results_of, score_rows
from mae.report.tables import plain, value_rows
from mae.runs.directory import RunDir, read_record
from mae.runs.log import final_values, read_columns
from mae.runs.rewind import rewind_of
from mae.runs.signals import StopSignal
from mae.train.measure import step_recipe
from mae.train.resolve import batch_plan, device_of, resolve_on_main
from mae.train.session import (
    RunInProgress,
    data_record,
    finish,
    open_session,
    refuse_in_readers,
    restore,
)
from mae.train.trainer import train
from mae.weights.formats.native import save
from mae.weights.given import configure, lasting, path_of
from mae.weights.load import load_segmenter
from mae.weights.start_from import config_from_weights, initial_segmenter


@shown
class SegmentRun(NamedTuple):
    """A finished run of semantic segmentation, and the scores on its test images.

    It stands for its path wherever weights are taken.
    """

    path: Path
    config: SegmentConfig
    num_steps: int
    resumed: bool
    train: int
    """Number of training images."""
    test: int
    """Number of test images, each pixel of which is scored once."""
    scores: SegmentScores
    model: Segmenter

    def values(self) -> dict[str, object]:
        """Return the values to print."""
        files, scores = RunDir(self.path), self.scores
        counts = {"train": self.train, "test": self.test, "steps": self.num_steps}
        figures = scores.values() | counts | {"resumed": self.resumed}
        return figures | {"run": self.path, "weights": files.weights, "report": files.report}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: scores, classes, files."""
        yield from score_rows(self.scores)
        rest = {n: v for n, v in self.values().items() if n not in ("classes", *SCORES)}
        yield from value_rows(plain(rest))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> dict[str, NDArray[Any]]:
        """The log as columns, see `read_columns`."""
        return read_columns(RunDir(self.path).log)

    @property
    def metrics(self) -> dict[str, float]:
        """The test scores, and the last value of each column of the log, times summed up."""
        return final_values(self.log) | {name: getattr(self.scores, name) for name in SCORES}

    def html(self) -> Iterator[Element]:
        """Yield the scores and facts of the run."""
        return run_html(self.path, self.rows())


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
    refuse_in_readers("segment_train")
    weights = None if weights is None else path_of(weights, name="weights")
    name = recipe if isinstance(recipe, str) else based_on
    others = signature(segment_train).parameters
    config, given = configure(recipe, SegmentConfig, fields, others=others)
    if isinstance(recipe, str):
        kept = kept_fields(recipe, {n: value for n, value in fields.items() if n not in given})
    folder = Path("runs", f"{data_name(data)}-segment") if out is None else Path(out)
    back_to = rewind_of(folder, resume_from, skip_steps)
    with (
        StopSignal("", command=command) as stop,
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        begun = ranks.on_main(lambda: read_record(folder))
        parts = _divided(data, config, weights, begun=begun, progress=progress, ranks=ranks)
        for note in parts.notes:
            progress.note(note)
        source, test = _few(parts.train, labels, seed=config.seed, progress=progress), parts.test
        how: dict[str, Any] = {"weights": weights, "begun": begun, "given": given}
        config = ranks.on_main(partial(_chosen, config, source, kept=kept, **how))
        resolved = resolve_on_main(ranks, config, source, **how)
        session = open_session(
            folder,
            resolved,
            progress,
            stop,
            recipe=name,
            data=data_record(data, source, resolved.kind, test=test)
            | {"split": None if parts.held is None else parts.held.record(parts.whole)},
            start={"weights": None if weights is None else lasting(weights)},
            finished_too=finished_too,
            back_to=back_to,
            ranks=ranks,
            labels=labels,
            class_names=list(source.mask_classes),
        )
        with session as run:
            if run.record["finished"]:
                model = load_segmenter(run.rundir.weights, quiet=True)
            else:
                if labels is not None and ranks.is_main_process:
                    every = np.arange(len(source))
                    write_choice(folder / "labels.csv", source, [every])
                model, notes = initial_segmenter(weights, resolved.config, **given)
                model.class_names = source.mask_classes
                for note in notes:
                    progress.note(note)
                _train(run, model, resolved.config, test)
            results = json.loads(run.rundir.results.read_bytes())
            return SegmentRun(
                path=folder,
                config=resolved.config,
                num_steps=run.record["num_steps"],
                resumed=run.resumed,
                train=run.record["data"]["count"],
                test=results["images"],
                scores=SegmentScores.of(results),
                model=model,
            )


def _divided(
    data: str | Path,
    config: SegmentConfig,
    weights: str | None,
    *,
    begun: dict[str, Any] | None,
    progress: Progress,
    ranks: Communicator,
) -> SegmentedData:
    """Split the data as the run to resume did, else as the run of the weights did."""
    seed = config.seed
    if begun is not None:
        seed, weights = (begun["data"].get("split") or {}).get("seed", seed), None
    return segmented(
        data, seed=seed, max_bad=config.max_bad, progress=progress, weights=weights, ranks=ranks
    )


def _few(source: MaskSource, labels: str | None, *, seed: int, progress: Progress) -> MaskSource:
    """Choose a part of the training images."""
    draws = FewLabels(labels).draws(
        source, np.arange(len(source)), seed=seed, log=progress.note
    )  # fmt: skip
    if len(draws) > 1:
        raise ConfigError(f"labels: {labels} holds {len(draws)} draws, expected one")
    return source.take(draws[0])


def _chosen(
    config: SegmentConfig,
    source: MaskSource,
    *,
    kept: Collection[str] | None,
    weights: str | None,
    begun: dict[str, Any] | None,
    given: Any,
) -> SegmentConfig:
    """Return the configuration with the crop and scale that the recipe segment-folder chooses."""
    if kept is None or (config.follow_weights and weights is None):
        return config
    if not config.follow_weights:
        short = config.short_side if "short_side" in kept else min(config.model.image_size)
        return replace(config, short_side=short)
    if begun is not None:
        stored = begun["config"]
        own = {"resize": tuple(stored["model"]["image_size"]), "short_side": stored["short_side"]}
        return replace(config, **{n: value for n, value in own.items() if n not in kept})
    assert weights is not None
    model = config_from_weights(
        config, weights, num_classes=len(source.mask_classes), **given
    ).model
    on_cpu = choose_device(config.device).type == "cpu"
    return choose_crop(config, model, on_cpu=on_cpu, kept=kept)


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
