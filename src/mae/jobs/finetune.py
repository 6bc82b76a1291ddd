"""Fine-tune a classifier from pre-trained weights on labelled images, and evaluate it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from mae.atomic import write_json_atomic
from mae.config.run import FinetuneConfig
from mae.data.sources.images import Images
from mae.data.sources.open import data_name
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.evaluation.classify import TOP, Candidates, classify
from mae.evaluation.evidence import score
from mae.evaluation.few_labels import FewLabels, write_choice
from mae.evaluation.labelled_data import Part, labelled
from mae.evaluation.metrics import Predictions
from mae.jobs.predict import Predicted, predict
from mae.model.classifier import Classifier
from mae.report.mistakes import save_thumbnails, wrong_images
from mae.report.notebook import run_html, shown
from mae.report.page import write_report
from mae.report.predictions import prediction_rows, write_predictions
from mae.report.tables import plain, value_rows
from mae.runs.directory import RunDir
from mae.runs.log import final_values, read_columns
from mae.train.call import open_call
from mae.train.choice import choose_tuning_config
from mae.train.ema import apply_ema
from mae.train.measure import step_recipe
from mae.train.resolve import batch_plan, device_of
from mae.train.session import RunInProgress, finish, restore
from mae.train.sharding import whole_model
from mae.train.trainer import train
from mae.weights.formats.native import save
from mae.weights.given import Given
from mae.weights.load import load_classifier
from mae.weights.start_from import initial_classifier

EVALUATION_BATCH = 64


@shown
class Tuned(NamedTuple):
    """A finished fine-tuning run and the test scores of its classifier.

    It stands for its path wherever weights are taken.
    """

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

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> dict[str, NDArray[Any]]:
        """The log as columns, see `read_columns`."""
        return read_columns(RunDir(self.path).log)

    @property
    def metrics(self) -> dict[str, float]:
        """The test scores, and the last value of each column of the log, times summed up.

        `loss` is that of the test images, `train_loss` the last one of training.
        """
        found = final_values(self.log)
        scores = {"top1": self.top1, "top5": self.top5, "loss": self.loss}
        if "loss" in found:
            found["train_loss"] = found["loss"]
        return found | {name: value for name, value in scores.items() if value is not None}

    def html(self) -> Iterator[Element]:
        """Yield the scores and facts of the run, and the confusion matrix."""
        return run_html(self.path, value_rows(plain(self.values())))

    def predict(self, images: Images, **how: Any) -> Predicted:
        """Classify images; `how` takes the other arguments of `mae.predict`."""
        return predict(RunDir(self.path).weights, images, **how)


def finetune(
    recipe: str | FinetuneConfig = "finetune-folder",
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
) -> Tuned:
    """Fine-tune a pre-trained encoder, or resume a run of the same configuration and data.

    An unfinished run is resumed; a finished run is returned unchanged. The processes of a job
    started by torchrun divide each batch; rank 0 writes.

    Args:
        recipe: name of a recipe, or a configuration.
        data: labelled images, see `labelled`.
        weights: whatever `load_encoder` takes, or a finished run; none: a new network, trained
            from scratch.
        out: run directory; `runs/DATA-NAME-tuned` if none.
        labels: few labels, see `FewLabels`; none: all.
        resume_from: step of an older checkpoint of an unfinished run to go back to; the same
            call again resumes from the newest.
        skip_steps: number of steps after it whose batches are not trained on; they count as steps.
        finished_too: return a finished run unchanged instead of refusing it.
        quiet: show no progress.
        command: the command line, for the record.
        based_on: name of the recipe that a configuration was made from, for the record.
        kept: names of the fields of `recipe` that the user set, where it is made from the recipe
            finetune-folder, which chooses batch and rate by the images.
        fields: fields of the recipe to change, by the names of the options with `_` for `-`
            (`epochs=5, model="vit-ti/16", lr=1e-3, optim={"weight_decay": 0.1}`); and what the
            weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop by SIGTERM, SIGUSR1 or Ctrl-C, after saving the state.
    """
    with open_call(
        finetune, FinetuneConfig, recipe, fields, data=data, weights=weights, out=out,
        suffix="-tuned", resume_from=resume_from, skip_steps=skip_steps,
        finished_too=finished_too, quiet=quiet, command=command, based_on=based_on, kept=kept,
    ) as call:  # fmt: skip
        progress, ranks = call.progress, call.ranks
        parts = labelled(data, **call.split)
        for note in parts.notes:
            progress.note(note)
        few = FewLabels(labels).single_draw(
            *parts.train, seed=call.config.seed, log=progress.note
        )  # fmt: skip
        source, test = Part(parts.train.source, few).as_source(), parts.test.as_source()
        choose = partial(choose_tuning_config, call.config, source, kept=call.kept, **call.how)
        session = call.open_run(
            ranks.on_main(partial(choose, log=progress.note)),
            source,
            test=test,
            split=None if parts.held is None else parts.held.record(parts.train.source),
            labels=labels,
            class_names=list(source.class_names),
        )
        with session as run:
            config = run.config
            assert isinstance(config, FinetuneConfig)
            if run.record["finished"]:
                model = load_classifier(run.rundir.weights).model
            else:
                if labels is not None and ranks.is_main_process:
                    write_choice(run.rundir.path / "labels.csv", parts.train.source, [few])
                new = _new_model(run, config, call.weights, **call.given)
                model = _train(run, new, config, test)
            results = json.loads(run.rundir.results.read_bytes())
            return Tuned(
                path=run.rundir.path,
                config=config,
                num_steps=run.record["num_steps"],
                resumed=run.resumed,
                classes=config.num_classes,
                train=run.record["data"]["count"],
                test=results.get("images", results.get("pictures")),  # pictures: version 0.1
                top1=results["top1"],
                top5=results["top5"],
                loss=results["loss"],
                model=model,
            )


def _new_model(
    run: RunInProgress, config: FinetuneConfig, weights: str | None, **given: Unpack[Given]
) -> Classifier:
    """Create the model of a new run, from pre-trained weights if there are any."""
    model, notes = initial_classifier(weights, config, **given)
    model.class_names = tuple(run.source.class_names)
    for note in notes:
        run.progress.note(note)
    return model


def _train(
    run: RunInProgress, model: Classifier, config: FinetuneConfig, test: Source
) -> Classifier:
    """Train from the newest checkpoint to the last step, evaluate, write weights and report.

    Returns:
        The trained model, on the CPU; `model` itself unless ranks hold parts of it.
    """
    state = restore(run, model)
    plan = batch_plan(config, run.source, run.kind, run.ranks.process)
    train(run, state, plan, step_recipe(config, plan, device_of(state)))
    apply_ema(state.optimizer)
    whole = whole_model(run, state)
    assert isinstance(whole, Classifier)
    names = run.source.class_names
    every = np.arange(config.num_classes)
    found = classify(
        whole.eval(),
        test,
        Candidates(every, every),
        batch=EVALUATION_BATCH,
        progress=run.progress,
        ranks=run.ranks,
    )
    whole.cpu()

    def write() -> None:
        _keep_predictions(run, found, test)
        write_json_atomic(run.rundir.results, _results(found, config, test))
        facts = {name: run.record[name] for name in ("recipe", "data", "weights", "num_steps")}
        save(whole, run.rundir.weights, class_names=names, facts=facts)
        write_report(run.rundir.path)
        finish(run, whole, written=load_classifier(run.rundir.weights).model)

    run.ranks.on_main(write)
    return whole


def _keep_predictions(run: RunInProgress, found: Predictions, test: Source) -> None:
    """Write the predictions of the test images, and the most confident mistakes."""
    rows = prediction_rows(found, test, run.source.class_names)
    write_predictions(run.rundir.predictions, rows)
    save_thumbnails(run.rundir.mistakes, wrong_images(found, rows, test, run.kind))


def _results(found: Predictions, config: FinetuneConfig, test: Source) -> dict[str, object]:
    """Return the contents of results.json."""
    there = {*found.ids.tolist()}
    return {
        "top1": found.top(1),
        "top5": found.top(TOP) if config.num_classes > TOP else None,
        "loss": found.loss,
        "images": len(found),
        "unreadable": [test.name(i) for i in range(len(test)) if i not in there],
        "averaged": config.ema is not None,
    }


class TunedSeeds(NamedTuple):
    """Finished runs that differ only in their seed."""

    path: Path
    """Parent folder of the run directories."""
    labels: str | None
    runs: tuple[Tuned, ...]

    def values(self) -> dict[str, object]:
        """Return the values that --json prints: mean and std of the scores, and every run."""
        values = dict[str, object]()
        for name in ("top1", "top5", "loss"):
            found = [getattr(run, name) for run in self.runs]
            if None not in found:
                values |= {name: score(found).mean, f"{name}_spread": score(found).spread}
        values |= {name: getattr(self.runs[0], name) for name in ("classes", "train", "test")}
        runs = [run.values() | {"seed": run.config.seed} for run in self.runs]
        seeds = [run["seed"] for run in runs]
        return values | {"labels": self.labels, "seeds": seeds, "path": self.path, "runs": runs}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield mean and spread, then a row per run."""
        yield from value_rows(self.values() | {"runs": None})
        for run in self.runs:
            yield f"seed {run.config.seed}", f"{run.top1:.2%}", str(run.path)


def finetune_seeds(
    config: FinetuneConfig,
    *,
    seeds: int,
    data: str | Path,
    out: str | Path | None = None,
    labels: str | None = None,
    resume_from: int | None = None,
    **how: Any,
) -> TunedSeeds:
    """Fine-tune with several seeds one after another, or resume a stopped call.

    Each run equals a single run with its seed: it draws its own few labels and, where a part of
    the data is held out for testing, its own part. Finished runs are kept, so that more seeds
    can be added later.

    Args:
        config: configuration of the runs; its seed is the first one.
        seeds: number of seeds.
        data: see `labelled`.
        out: folder of the runs, seed-0 and so on; `runs/DATA-NAME-tuned` if none.
        labels: few labels, see `FewLabels`; none: all.
        resume_from: refused, since the runs are at different steps.
        how: other arguments of `finetune`: weights, quiet and so on.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop; the same call resumes from there.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {seeds}")
    if resume_from is not None:
        raise ConfigError("resume_from: goes with one run; drop --seeds, and give its --out")
    folder = Path("runs", f"{data_name(data)}-tuned") if out is None else Path(out)
    if (folder / "run.json").exists():
        raise ConfigError(
            f"{folder}: is a run itself, expected a folder for a run of each seed; choose another "
            "with --out, or drop --seeds"
        )
    runs = [
        finetune(
            replace(config, seed=seed), data=data, out=folder / f"seed-{seed}", labels=labels, **how
        )
        for seed in range(config.seed, config.seed + seeds)
    ]
    return TunedSeeds(folder, labels, tuple(runs))
