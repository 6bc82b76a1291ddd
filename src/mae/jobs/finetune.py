"""Fine-tune a classifier from pre-trained weights on labelled images, and evaluate it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np

from mae.atomic import write_json_atomic
from mae.config.model import refuse_without_effect
from mae.config.run import FinetuneConfig, ModelConfig, settle_crop_pct
from mae.data.augment.randaugment import RandAugment, check_randaugment
from mae.data.batching.batch import Batch
from mae.data.batching.loader import batches, on_device
from mae.data.decoding.decode import PixelKind
from mae.data.decoding.header import asked_channels, kind_of
from mae.data.sources.open import data_name
from mae.data.sources.source import Source
from mae.data.survey import survey
from mae.errors import ConfigError, DataError
from mae.evaluation.divided import tuned_on
from mae.evaluation.few_labels import write_choice
from mae.evaluation.few_options import FewSettings
from mae.evaluation.labelled_data import Labelled, Part, labelled
from mae.evaluation.metrics import Verdicts
from mae.jobs.evaluate import TOP, Judge, Question
from mae.model.classifier import Classifier
from mae.progress import Progress
from mae.recipes.catalogue import find_config
from mae.report.page import write_report
from mae.runs.checkpoint import load_checkpoint
from mae.runs.directory import OpenedRun, RunDir, make_run_folder, open_run, read_record
from mae.runs.signals import RunLock, StopSignal
from mae.runs.state import TrainState
from mae.train.compile import compiled_loss
from mae.train.ema import apply_ema
from mae.train.finetune_batch import finetune_batch, finetune_batches, soft_target_loss
from mae.train.measure import StepRecipe
from mae.train.micro_batch import choose_micro_batch
from mae.train.resolve import batch_plan, choose_workers, device_of, new_state, pixels_of
from mae.train.session import (
    RunInProgress,
    data_record,
    defaults_of,
    finish,
    first_record,
    refuse_in_readers,
    require_same_start,
    set_threads,
    settle_steps,
    settled,
    tf32_beside,
    train_run,
)
from mae.train.step import OptimiserStep
from mae.weights.formats.native import save
from mae.weights.given import Given
from mae.weights.initialize import initial_classifier, model_to_tune
from mae.weights.io.hub import PREFIX
from mae.weights.load import load_classifier

JUDGED_AT_A_TIME = 64


class Tuned(NamedTuple):
    """A finished fine-tuning run and the test scores of its classifier."""

    path: Path
    config: FinetuneConfig
    num_steps: int
    resumed: bool
    classes: int
    train: int
    """Number of training images."""
    test: int
    """Number of test images, each evaluated once."""
    top1: float
    top5: float | None
    """None where there are at most five classes."""
    loss: float
    model: Classifier

    def values(self) -> dict[str, object]:
        """Return the values to print."""
        files = RunDir(self.path)
        names = ("top1", "top5", "loss", "classes", "train", "test", "resumed")
        figures = {name: getattr(self, name) for name in names} | {"steps": self.num_steps}
        return figures | {"run": self.path, "weights": files.weights, "report": files.report}


def finetune(
    recipe: str | FinetuneConfig = "finetune-folder",
    *,
    data: str | Path,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    labels: str | None = None,
    finished_too: bool = True,
    quiet: bool = False,
    command: Sequence[str] = (),
    based_on: str = "custom",
    **given: Unpack[Given],
) -> Tuned:
    """Fine-tune a pre-trained encoder, or resume a run of the same configuration and data.

    An unfinished run is resumed; a finished run is returned unchanged.

    Args:
        recipe: name of a recipe, or a configuration.
        data: labelled images, see `labelled`.
        weights: whatever `load_encoder` takes; none: a new network, trained from scratch.
        out: run directory; `runs/DATA-NAME-tuned` if none.
        labels: few labels, see `label_draws`; none: all.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    refuse_in_readers("finetune")
    named = recipe if isinstance(recipe, str) else based_on
    config = find_config(recipe, FinetuneConfig) if isinstance(recipe, str) else recipe
    folder = Path("runs", f"{data_name(data)}-tuned") if out is None else Path(out)
    stopping = StopSignal("", command=command)
    with stopping as stop, Progress(quiet=quiet) as progress:
        parts = _divided(data, config, weights, begun=read_record(folder))
        for note in parts.notes:
            progress.note(note)
        draws = FewSettings(labels).draws(*parts.train, seed=config.seed, say=progress.note)
        if len(draws) > 1:
            raise ConfigError(f"labels: {labels} holds {len(draws)} draws, expected one")
        source = Part(parts.train.source, draws[0]).as_source()
        config, kind = _resolve(config, source, weights, given, say=progress.note)
        rundir = make_run_folder(folder)
        with RunLock(rundir.lock):
            config = settled(config, rundir)
            record = first_record(
                config,
                recipe=named,
                command=command,
                data=data_record(data, source, kind, judged_on=parts.test.as_source())
                | {"split": _split_record(parts)},
                weights=None if weights is None else _lasting(weights),
                labels=labels,
                class_names=list(source.class_names),
            )
            opened = open_run(
                rundir.path,
                record=record,
                defaults=defaults_of(config),
                finished_too=finished_too,
            )
            if opened.record["finished"]:
                require_same_start(opened, record, "weights")
                return _tuned(opened, config, load_classifier(rundir.weights).model)
            if labels is not None:
                write_choice(rundir.path / "labels.csv", parts.train.source, draws)
            run = RunInProgress(rundir, config, source, kind, opened.record, progress, stop)
            model = _run_to_the_end(run, weights, parts.test.as_source(), given)
            return _tuned(opened, config, model)


def _divided(
    data: str | Path,
    config: FinetuneConfig,
    weights: str | Path | None,
    *,
    begun: Mapping[str, Any] | None,
) -> Labelled:
    """Split the data as the run to resume did, else as the fine-tuning of the weights did."""
    if begun is None:
        return labelled(data, seed=config.seed, tuned=tuned_on(weights))
    split = begun["data"].get("split") or {}
    return labelled(data, seed=split.get("seed", config.seed))


def _split_record(parts: Labelled) -> dict[str, object] | None:
    """Return the entry of run.json for the held-out part; None if the data came with splits."""
    if parts.held is None:
        return None
    return {**parts.held._asdict(), "names": parts.held.names_digest(parts.train.source)}


def _tuned(opened: OpenedRun, config: FinetuneConfig, model: Classifier) -> Tuned:
    """Return the result of a finished run."""
    record, results = opened.record, json.loads(opened.rundir.results.read_bytes())
    return Tuned(
        path=opened.rundir.path,
        config=config,
        num_steps=record["num_steps"],
        resumed=opened.resumed,
        classes=config.num_classes,
        train=record["data"]["count"],
        test=results["pictures"],
        top1=results["top1"],
        top5=results["top5"],
        loss=results["loss"],
        model=model,
    )


def _lasting(weights: str | Path) -> str:
    """Name weights so that they are found from another working directory."""
    name = str(weights)
    return name if name.startswith(PREFIX) else str(Path(weights).resolve())


def _resolve(
    config: FinetuneConfig,
    source: Source,
    weights: str | Path | None,
    given: Given,
    *,
    say: Callable[[str], None],
) -> tuple[FinetuneConfig, PixelKind]:
    """Settle the fields that depend on weights and images, and refuse a mismatch."""
    how: dict[str, Any] = {"max_bad": config.max_bad, "log": say}
    there = survey(source, **how)
    model = _model(config, source, there, weights, given)
    kind = kind_of(model)
    if there.channels != model.channels and (asked := asked_channels(kind)) is not None:
        there = survey(source, channels=asked, **how)
    # Grey and RGB images can be converted to each other; other channel counts cannot.
    if there.channels != model.channels and {there.channels, model.channels} != {1, 3}:
        raise DataError(
            f"data: the pictures have {there.channels} channels, the weights take "
            f"{model.channels}; give pictures or weights of the other"
        )
    if there.dtype == "float32" != kind.dtype:
        raise DataError(
            f"data: the pictures are floating-point, the weights take {kind.dtype}; convert them"
        )
    if config.rand_augment is not None:
        check_randaugment(RandAugment(config.rand_augment, model.pixels.mean), kind)
    batch = min(config.batch, len(source))
    if batch < config.batch:
        say(f"batch: lowered from {config.batch} to {batch}, the pictures there are")
    # From here on the network is explicit, so that run.json alone reproduces the run.
    said = {"model": model, "follow_weights": False, "resize": None}
    classes = len(source.class_names)
    return dataclasses.replace(config, **said, num_classes=classes, batch=batch), kind  # type: ignore[arg-type]


def _model(
    config: FinetuneConfig,
    source: Source,
    there: PixelKind,
    weights: str | Path | None,
    given: Given,
) -> ModelConfig:
    if weights is not None:
        return model_to_tune(weights, config, num_classes=len(source.class_names), **given)
    refuse_without_effect("a new network", "--weights", **given)
    if config.follow_weights:
        raise ConfigError(
            "weights: expected --weights, a folder, file or run; from scratch there are the "
            "recipes paper-scratch-vit-b, -l and -h"
        )
    pixels = pixels_of(source, there)
    model = dataclasses.replace(config.model, channels=there.channels, pixels=pixels)
    return settle_crop_pct(model, config.augment)


def _run_to_the_end(
    run: RunInProgress, weights: str | Path | None, test: Source, given: Given
) -> Classifier:
    """Load or create the state, train, evaluate, and write weights and report."""
    config, record, say = run.config, run.record, run.progress.note
    assert isinstance(config, FinetuneConfig)
    set_threads(config, record)
    # Where to start from, in this order: the run's own checkpoint, the weights, new ones.
    model, notes = initial_classifier(weights, config, **given)
    for note in notes:
        say(note)
    state = new_state(model, config)
    load_checkpoint(run.rundir.checkpoints, state, say=say)
    if state.step < record.get("num_steps", math.inf):
        with tf32_beside(config.half, device_of(state)):
            _train(run, state)
    apply_ema(state.optimizer)
    device = device_of(state)
    judge = Judge(model.eval(), run.source.class_names, device, JUDGED_AT_A_TIME, run.progress)
    every = np.arange(config.num_classes)
    found = judge.verdicts(Question(test, every, every, "all classes"))
    write_json_atomic(run.rundir.results, _results(found, config, test))
    facts = {name: record[name] for name in ("recipe", "data", "weights", "num_steps")}
    save(model.cpu(), run.rundir.weights, class_names=run.source.class_names, facts=facts)
    write_report(run.rundir.path)
    finish(run, model, written=load_classifier(run.rundir.weights).model)
    return model


def _train(run: RunInProgress, state: TrainState) -> None:
    config, device = run.config, device_of(state)
    assert isinstance(config, FinetuneConfig)
    plan = batch_plan(config, run.source, run.kind)

    def prepare(batch: Batch, step: int) -> Batch:
        return finetune_batch(batch, plan, config, step=step, device=device)

    how = StepRecipe(soft_target_loss, prepare)
    fixed = dataclasses.replace(run.config, micro_batch=choose_micro_batch(run, state, plan, how))
    run = run._replace(config=fixed)
    how = how._replace(loss=compiled_loss(run, state, plan, how))
    num_steps = settle_steps(run, plan, state.model, how)
    workers = choose_workers(config, plan, device, say=run.progress.note)
    made = on_device(batches(plan, start=state.step, stop=num_steps, workers=workers), device)
    train_run(
        run,
        state,
        OptimiserStep(loss=how.loss, config=run.config, device=device),
        finetune_batches(made, plan, config, start=state.step, device=device),
        batches_per_epoch=plan.batches_per_epoch,
    )


def _results(found: Verdicts, config: FinetuneConfig, test: Source) -> dict[str, object]:
    """Return the contents of results.json."""
    there = {*found.ids.tolist()}
    return {
        "top1": found.top(1),
        "top5": found.top(TOP) if config.num_classes > TOP else None,
        "loss": found.loss,
        "pictures": len(found),
        "unreadable": [test.name(i) for i in range(len(test)) if i not in there],
        "averaged": config.ema is not None,
    }
