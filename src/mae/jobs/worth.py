"""Compare starts on the user's own images and labels: was pre-training worth it?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mae.atomic import write_atomic
from mae.config.run import PretrainConfig
from mae.config.sizes import size_name
from mae.data.batching.batch import evaluation_batch
from mae.data.sources.open import data_name
from mae.data.sources.source import Source
from mae.data.survey import survey
from mae.data.types import Log
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation.comparison import (
    Comparison,
    Start,
    open_comparison,
    scores,
    write_comparison,
)
from mae.evaluation.inputs import FeatureSettings, open_for_features
from mae.evaluation.label_free import Unlabelled, label_free, last_check
from mae.evaluation.paired import Correct
from mae.evaluation.starts import (
    BATCH,
    PIXELS,
    SEEDS,
    Columns,
    Drawn,
    Scorer,
    draw_labels,
    encode_baselines,
    encode_start,
    find_images,
    read_columns,
    sample_of,
    scorer,
)
from mae.evaluation.supervised import supervised_start
from mae.jobs.pretrain import Run, pretrain
from mae.model.create import create
from mae.model.encoder import Encoder, Pool
from mae.planning.hardware import choose_device
from mae.progress import Progress, minutes_in_words
from mae.report.notebook import shown
from mae.report.tables import plain
from mae.report.worth import worth_page, worth_rows, worth_sentence
from mae.runs.directory import RunDir
from mae.runs.log import read_rows
from mae.runs.signals import StopSignal
from mae.train.session import refuse_in_readers
from mae.weights.given import path_of

LOOKED_AT = 64  # images, to see whether all are equal

RAW, RANDOM = "raw pixels", "the random encoder"
SCRATCH, SUPERVISED = "MAE from scratch", "supervised on the labels alone"


@shown
class Worth(NamedTuple):
    """The verdict on all starts, and where the comparison is kept."""

    comparison: Comparison | Unlabelled
    """Of images without labels, figures of health alone."""
    path: Path
    page: Path

    @property
    def sentence(self) -> str:
        """The verdict."""
        return worth_sentence(self.comparison)

    def values(self) -> dict[str, Any]:
        """Return the values that --json prints."""
        found = {"sentence": self.sentence} | self.comparison.values()
        return found | {"path": self.path, "page": self.page}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the sentence, the table and the page."""
        yield (f"{self.sentence}.",)
        yield from worth_rows(self.comparison)
        yield "page", str(self.page)


class _Task(NamedTuple):
    """What every start is compared on."""

    folder: Path
    images: Source
    """What the starts are trained on without labels."""
    drawn: Drawn
    pool: Pool
    device: torch.device
    minutes: float
    """Of one start."""
    stop: StopSignal
    quiet: bool

    def note(self, text: str) -> None:
        """Print a line for the user."""
        Progress(quiet=self.quiet).note(text)

    def features(self, name: str, encoder: Encoder, *, file: str) -> list[Columns]:
        """Return the features of the drawn and of the test images, computed once."""
        compute = encode_start(encoder.to(self.device).eval(), self.pool)
        return self.read(name, compute, encoder, file=file)

    def read(self, name: str, compute: Any, encoder: Encoder, *, file: str | None) -> list[Columns]:
        """Read the drawn and the test images; then stop, if the user asked for it."""
        path = None if file is None else self.folder / "features" / f"{file}.npz"
        parts = {f"{name}: drawn image": self.drawn.images, f"{name}: test image": self.drawn.test}
        parts = {label: part for label, part in parts.items() if len(part.ids)}
        found = read_columns(compute, encoder, parts, file=path, quiet=self.quiet)
        self.require_no_stop(f"{name} is done")
        return found

    def require_no_stop(self, done: str) -> None:
        """Raise `Stopped` if the user asked to stop."""
        if self.stop.requested is not None:
            raise self.stop.stopped(f"stopped: {done}")


def worth(
    *,
    data: str | Path,
    labels: str | None = None,
    minutes: float = 20.0,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    out: str | Path | None = None,
    draws: int = 5,
    pool: Pool = "grid",
    device: str = "auto",
    seed: int = 0,
    recipe: str | PretrainConfig = "folder",
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Worth:
    """Compare raw pixels, a random encoder, weights, and training on these images.

    A repeated call resumes a stopped one. The protocol is in docs/worth.md.

    Args:
        data: labelled images, see `labelled`; or a folder of images for a list of labels.
        labels: labels in a draw, see `FewLabels`; none: ten of each class, or half of the smallest.
            Or a list of path,label of some of the images, of which as many are drawn.
        minutes: divided equally between the starts that train.
        weights: whatever `load_encoder` takes, or finished runs; several are compared.
        out: folder of the runs and the page; `runs/DATA-NAME-worth` if none.
        draws: draws of labels.
        pool: pooling of every encoder's tokens.
        device: see `choose_device`.
        seed: seed of the held-out images, the draws and the training.
        recipe: how to train from scratch; a length in steps is kept.
        quiet: show no progress.
        command: the command line, for the message of `Stopped`.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop; the same call resumes.
    """
    refuse_in_readers("worth")
    several = [weights] if isinstance(weights, str | os.PathLike) else weights
    given = [path_of(each, name="weights") for each in several]
    if not minutes > 0:
        raise ConfigError(f"minutes: expected a number above 0, got {minutes:g}")
    if draws < 2:
        raise ConfigError(f"draws: expected at least 2, got {draws}")
    folder = Path("runs", f"{data_name(data)}-worth") if out is None else Path(out)
    with StopSignal("finishing this part", command=command) as stop:
        log = Progress(quiet=quiet).note
        images, parts = _find(data, labels, draws, seed=seed, weights=given, log=log)
        share = minutes / (1 + len(given) + bool(parts.sizes))
        pool = pool if parts.sizes else "mean"  # as the health checks
        task = _Task(folder, images, parts, pool, choose_device(device), share, stop, quiet)
        weighed = _open_weights(task, given)
        trained = [SCRATCH, *(f"{each.name}, continued" for each in weighed)]
        trained += [SUPERVISED] if parts.sizes else []
        log(f"{minutes_in_words(minutes)}, {share:.3g} for each of {', '.join(trained)}")
        asked = {"data": str(data), "labels": labels, "minutes": minutes, "draws": draws,
                 "weights": [*map(str, given)], "pool": pool, "seed": seed,
                 "fingerprint": images.fingerprint()}  # fmt: skip
        fields = {"seed": seed, "device": device, "minutes": share}
        if isinstance(recipe, PretrainConfig) and recipe.steps is not None:
            fields |= {"minutes": None, "steps": recipe.steps}
        with open_comparison(folder, asked) as record:
            encoded = _train_and_encode(task, weighed, recipe, fields)
            compare = _compared if parts.sizes else _unlabelled
            found = compare(task, encoded, record, data=data_name(data), minutes=minutes)
            write_atomic(folder / "worth.html", worth_page(found))
            write_comparison(folder, record | {"results": plain(found.values())})
    return Worth(found, folder, folder / "worth.html")


def _find(
    data: str | Path,
    labels: str | None,
    draws: int,
    *,
    seed: int,
    weights: Sequence[str | Path],
    log: Log,
) -> tuple[Source, Drawn]:
    """Return the images to train on without labels, and the draws; none without classes."""
    try:
        first = weights[0] if weights else None
        parts, images, few = find_images(data, labels, seed=seed, weights=first)
    except DataError:
        if labels is not None or (found := sample_of(data)) is None:
            raise
        log(f"{data}: {len(found[0]):,} images without classes: figures of health alone")
        return found
    return images, draw_labels(parts, few, draws, seed=seed, log=log)


class _Weights(NamedTuple):
    """Given weights."""

    name: str
    path: str | Path
    encoder: Encoder


def _open_weights(task: _Task, given: Sequence[str | Path]) -> list[_Weights]:
    """Load the given weights; refuse those that do not take the images, and images all equal."""
    source, every = task.images, range(len(task.images))
    kind, ids = survey(source), every[:: -(-len(every) // LOOKED_AT)]
    images = evaluation_batch(source, ids, kind=kind, size=(PIXELS, PIXELS)).images
    if len(images) and bool((images == images[0]).all()):
        raise DataError(f"data: all of {len(images)} images looked at are equal; give others")
    found = list[_Weights]()
    for path in given:
        settings = FeatureSettings(task.pool, BATCH, str(task.device))
        encoder = open_for_features(path, settings, log=task.note)
        counts = {encoder.config.channels, kind.channels}
        if len(counts) > 1 and counts != {1, 3}:
            raise WeightsError(
                f"{path}: takes {encoder.config.channels} channels, the images have "
                f"{kind.channels}; leave these weights out, or give others"
            )
        name = Path(path).name
        same = sum(each.name.partition(" (")[0] == name for each in found)
        found.append(_Weights(f"{name} ({same + 1})" if same else name, path, encoder))
    return found


class _Encoded(NamedTuple):
    """Features of every start but the supervised one."""

    features: dict[str, list[Columns]]
    runs: dict[str, Run]
    random: list[Encoder]
    baselines: list[Columns]
    """Raw pixels, then the features of each random encoder."""

    def spent(self, name: str) -> tuple[float, float | None]:
        """Return the minutes and the passes over the images of a start."""
        if name not in self.runs:
            return 0.0, None
        run, files = self.runs[name], RunDir(self.runs[name].path)
        seconds = sum(row.get("seconds", 0) for row in read_rows(files.log))
        count = json.loads(files.record.read_bytes())["data"]["count"]
        return seconds / 60, run.num_steps * run.config.batch / count

    @property
    def network(self) -> str:
        """Name of the network of MAE from scratch."""
        model = self.runs[SCRATCH].config.model
        name = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
        size = "x".join(map(str, model.image_size))
        return f"{name} on images of {size}, {model.channels} channels"


def _train_and_encode(
    task: _Task,
    weighed: Sequence[_Weights],
    recipe: str | PretrainConfig,
    fields: Mapping[str, Any],
) -> _Encoded:
    """Train what trains without labels, and compute the features of every start."""
    features, runs = dict[str, list[Columns]](), dict[str, Run]()
    for i, each in enumerate(weighed):
        name = f"{each.name}, frozen"
        features[name] = task.features(name, each.encoder, file=f"frozen-{i}")
    for i, each in enumerate(weighed):
        name, folder = f"{each.name}, continued", f"continued-{i}"
        runs[name] = _pretrained(task, name, "continue", folder, fields, init=each.path)
        features[name] = task.features(name, runs[name].model.encoder, file=folder)
    runs[SCRATCH] = _pretrained(task, SCRATCH, recipe, "scratch", fields)
    features[SCRATCH] = task.features(SCRATCH, runs[SCRATCH].model.encoder, file="scratch")
    model = runs[SCRATCH].config.model
    random = [create(model, seed=seed).encoder.to(task.device).eval() for seed in range(SEEDS)]
    bars = task.read("baselines", encode_baselines(random, task.pool), random[0], file="baselines")
    return _Encoded(features, runs, random, bars)


def _compared(
    task: _Task, encoded: _Encoded, record: dict[str, Any], *, data: str, minutes: float
) -> Comparison:
    """Classify with every start, and judge."""
    bars, drawn = encoded.baselines, task.drawn
    to = scorer(drawn, (bars, *encoded.features.values()))

    def start(name: str, correct: list[Correct]) -> Start:
        task.note(f"{name}: {correct[-1].mean():.1%} with {to.sizes[-1].labels:,.0f} labels")
        task.require_no_stop(f"{name} is classified")
        return Start(name, correct, *encoded.spent(name))

    task.note("classifying by logistic regression ...")
    baselines = [
        start(RAW, to.score(bars)),
        start(RANDOM, to.score_seeds(bars, range(1, 1 + SEEDS))),
    ]
    starts = [start(name, to.score(each)) for name, each in encoded.features.items()]
    supervised, about = _supervised(task, encoded.random, to, record)
    baseline_scores, start_scores = scores(baselines, [*starts, supervised], minutes=minutes)
    return Comparison(
        data=data, baselines=baseline_scores, starts=start_scores, minutes=minutes,
        labels=tuple(size.labels for size in drawn.sizes), train=drawn.of, images=len(task.images),
        classes=len(drawn.images.source.class_names), test=len(to.test),
        draws=len(drawn.sizes[-1].ids), seeds=SEEDS, pool=task.pool, network=encoded.network,
        supervised=about,
    )  # fmt: skip


def _unlabelled(
    task: _Task, encoded: _Encoded, record: dict[str, Any], *, data: str, minutes: float
) -> Unlabelled:
    """Return the figures of every start without labels."""
    starts = [label_free(RANDOM, encoded.baselines[0].columns[1])]
    for name, features in encoded.features.items():
        spent, passes = encoded.spent(name)
        checked = last_check(RunDir(encoded.runs[name].path)) if name in encoded.runs else {}
        starts.append(
            label_free(name, features[0].columns[0], minutes=spent, passes=passes, **checked)
        )
    return Unlabelled(
        data=data, starts=tuple(starts), images=len(task.images), minutes=minutes,
        sample=len(encoded.baselines[0].ids), network=encoded.network,
    )  # fmt: skip


def _pretrained(
    task: _Task,
    name: str,
    recipe: str | PretrainConfig,
    folder: str,
    fields: Mapping[str, Any],
    init: str | Path | None = None,
) -> Run:
    """Pre-train on the images, but for the test images, or take the finished run."""
    task.note(f"{name}: pre-training ...")
    return pretrain(recipe, data=task.images, out=task.folder / folder, init=init,
                    quiet=task.quiet, command=task.stop.command, **fields)  # fmt: skip


def _supervised(
    task: _Task, networks: Sequence[Encoder], to: Scorer, record: dict[str, Any]
) -> tuple[Start, str]:
    """Train a new network for each draw and seed on the drawn labels alone.

    Returns:
        The start, and its settings in words.
    """
    images = task.read(SUPERVISED, lambda batch: [batch.images.numpy()], networks[0], file=None)
    own = supervised_start(networks, images, to, classes=len(task.drawn.images.source.class_names))
    if "supervised_steps" not in record:
        record["supervised_steps"] = own.steps_within(60 * task.minutes)
        write_comparison(task.folder, record)
    steps = record["supervised_steps"]
    correct, seconds = np.zeros((len(own.draws), len(to.test))), 0.0
    with Progress(quiet=task.quiet) as progress:
        batch, label = own.config.batch, f"{SUPERVISED}: step"
        progress.start(own.trainings * steps, images_per_step=batch, label=label)
        found = own.predictions(task.folder / "supervised", steps=steps)
        for done, (draw, predicted) in enumerate(found, start=1):
            correct[draw] += (predicted.classes == to.test_y) / SEEDS
            seconds += predicted.seconds
            progress.update(done * steps)
            task.require_no_stop(f"{done} of {own.trainings} networks are trained")
    passes, whole = (n * batch / len(own.draws[0]) for n in (steps, own.config.steps or steps))
    return Start(SUPERVISED, [correct], seconds / 60, passes, whole), own.about(steps=steps)
