"""Compare starts on the user's own images and labels: was pre-training worth it?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mae.atomic import write_atomic, write_json_atomic
from mae.config.run import PretrainConfig
from mae.config.sizes import size_name
from mae.data.batching.batch import evaluation_batch
from mae.data.sources.open import data_name
from mae.data.sources.source import Source
from mae.data.survey import survey
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation.comparison import Comparison, Start, scores
from mae.evaluation.features import LabelledImages
from mae.evaluation.inputs import FeatureSettings, open_for_features
from mae.evaluation.labelled_data import Part
from mae.evaluation.paired import Correct
from mae.evaluation.starts import (
    BATCH,
    PIXELS,
    SEEDS,
    Columns,
    Draws,
    Scorer,
    draw_labels,
    encode_baselines,
    encode_start,
    find_images,
    read_columns,
    scorer,
)
from mae.evaluation.supervised import affordable_steps, supervised_config, supervised_predictions
from mae.jobs.pretrain import Run, pretrain
from mae.model.create import create
from mae.model.encoder import Encoder, Pool
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.report.tables import plain
from mae.report.worth import worth_page, worth_rows, worth_sentence
from mae.runs.directory import RunDir, differences
from mae.runs.log import read_rows
from mae.runs.signals import RunLock, StopSignal
from mae.train.session import refuse_in_readers

RECORD = "worth.json"
LOOKED_AT = 64  # images, to see whether all are equal

RAW, RANDOM = "raw pixels", "the random encoder"
SCRATCH, SUPERVISED = "MAE from scratch", "supervised on the labels alone"


class Worth(NamedTuple):
    """The verdict on all starts, and where the comparison is kept."""

    comparison: Comparison
    path: Path
    page: Path

    def values(self) -> dict[str, Any]:
        """Return the values that --json prints."""
        found = {"sentence": worth_sentence(self.comparison)} | self.comparison.values()
        return found | {"path": self.path, "page": self.page}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the sentence, the table and the page."""
        yield (f"{worth_sentence(self.comparison)}.",)
        yield from worth_rows(self.comparison)
        yield "page", str(self.page)


class _Task(NamedTuple):
    """What every start is compared on."""

    folder: Path
    images: Source
    """What the starts are trained on without labels."""
    drawn: Part
    """The training images of any draw."""
    test: Part
    sizes: tuple[Draws, ...]
    """Draws as ids of the source, fewest labels first."""
    pool: Pool
    device: torch.device
    minutes: float
    """Of one start."""
    stop: StopSignal
    quiet: bool

    def note(self, text: str) -> None:
        """Print a line for the user."""
        Progress(quiet=self.quiet).note(text)

    def parts(self, name: str) -> dict[str, Part]:
        """Return the drawn and any test images by a name for the progress display."""
        parts = {f"{name}: drawn image": self.drawn, f"{name}: test image": self.test}
        return {label: part for label, part in parts.items() if len(part.ids)}

    def features(self, name: str, encoder: Encoder, *, file: str) -> list[Columns]:
        """Return the features of the drawn and of the test images, computed once."""
        compute = encode_start(encoder.to(self.device).eval(), self.pool)
        return self.read(name, compute, encoder, file=file)

    def read(self, name: str, compute: Any, encoder: Encoder, *, file: str | None) -> list[Columns]:
        """Read the drawn and the test images; then stop, if the user asked for it."""
        path = None if file is None else self.folder / "features" / f"{file}.npz"
        found = read_columns(compute, encoder, self.parts(name), file=path, quiet=self.quiet)
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
    weights: str | Path | Sequence[str | Path] = (),
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
        weights: whatever `load_encoder` takes; several are compared.
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
    given = [weights] if isinstance(weights, str | Path) else [*weights]
    if not minutes > 0:
        raise ConfigError(f"minutes: expected a number above 0, got {minutes:g}")
    if draws < 2:
        raise ConfigError(f"draws: expected at least 2, got {draws}")
    share = minutes / (2 + len(given))
    folder = Path("runs", f"{data_name(data)}-worth") if out is None else Path(out)
    with StopSignal("finishing this part", command=command) as stop:
        log = Progress(quiet=quiet).note
        parts, images, few = find_images(data, labels, seed=seed, weights=[*given, None][0])
        train, drawn, test, sizes = draw_labels(parts, few, draws, seed=seed, log=log)
        task = _Task(folder, images, drawn, test, sizes, pool, choose_device(device), share, stop,
                     quiet)  # fmt: skip
        weighed = _open_weights(task, given)
        trained = [SCRATCH, *(f"{each.name}, continued" for each in weighed), SUPERVISED]
        task.note(f"{minutes:g} minutes, {share:.3g} for each of {', '.join(trained)}")
        asked = {"data": str(data), "labels": labels, "minutes": minutes, "draws": draws,
                 "weights": [*map(str, given)], "pool": pool, "seed": seed,
                 "fingerprint": images.fingerprint()}  # fmt: skip
        fields = {"seed": seed, "device": device, "minutes": share}
        if isinstance(recipe, PretrainConfig) and recipe.steps is not None:
            fields |= {"minutes": None, "steps": recipe.steps}
        with _opened(folder, asked) as record:
            encoded = _train_and_encode(task, weighed, recipe, fields)
            baselines, starts, about = _all_starts(task, encoded, record)
            baseline_scores, start_scores = scores(baselines, starts, minutes=minutes)
            found = Comparison(
                data=data_name(data), baselines=baseline_scores, starts=start_scores,
                labels=tuple(size.labels for size in task.sizes),
                classes=len(drawn.source.class_names), train=len(train.ids), images=len(images),
                test=baselines[0].correct[-1].shape[1], draws=len(task.sizes[-1].ids),
                seeds=SEEDS, minutes=minutes, pool=pool, network=encoded.network,
                supervised=about,
            )  # fmt: skip
            result = Worth(found, folder, folder / "worth.html")
            write_atomic(result.page, worth_page(found))
            _write(folder, record | {"results": found.values()})
    return result


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


@contextmanager
def _opened(folder: Path, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Lock the folder of a comparison, and start it or resume it.

    Raises:
        ConfigError: for a folder of other files, or of a comparison with other settings.
    """
    file = folder / RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir() if path.name[0] != "."} - {"lock"}
        record = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be used: {error}; choose another --out") from error
    if others and not record:
        raise ConfigError(f"{folder}: holds other files, no {RECORD}; choose another --out")
    if record and (changed := differences(record["asked"], asked)):
        raise ConfigError(
            f"{folder}: holds another comparison: {changed}; ask for the same, or choose another "
            "--out"
        )
    with RunLock(folder / "lock"):
        record = record or {"asked": dict(asked)}
        _write(folder, record)
        yield record


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_json_atomic(folder / RECORD, plain(record))


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


def _all_starts(
    task: _Task, encoded: _Encoded, record: dict[str, Any]
) -> tuple[list[Start], list[Start], str]:
    """Classify with every start.

    Returns:
        The baselines, the starts, and the settings of the supervised one in words.
    """
    bars, features = encoded.baselines, encoded.features
    to = scorer(task.drawn.source, task.test.source, task.sizes, (bars, *features.values()))

    def start(name: str, correct: list[Correct]) -> Start:
        task.note(f"{name}: {correct[-1].mean():.1%} with {to.sizes[-1].labels:,.0f} labels")
        task.require_no_stop(f"{name} is classified")
        return Start(name, correct, *encoded.spent(name))

    task.note("classifying by logistic regression ...")
    baselines = [
        start(RAW, to.score(bars)),
        start(RANDOM, to.score_seeds(bars, range(1, 1 + SEEDS))),
    ]
    starts = [start(name, to.score(each)) for name, each in features.items()]
    supervised, about = _supervised(task, encoded.random, to, record)
    return baselines, [*starts, supervised], about


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
    columns = task.read(SUPERVISED, lambda batch: [batch.images.numpy()], networks[0], file=None)
    known = LabelledImages(torch.from_numpy(columns[0].of(to.drawn)[0]), to.drawn_y)
    asked = LabelledImages(torch.from_numpy(columns[1].of(to.test)[0]), to.test_y)
    draws, classes = to.sizes[-1].ids, len(task.drawn.source.class_names)
    count = len(draws[0])
    config = supervised_config(networks[0].config, classes=classes, labels=count)
    if "supervised_steps" not in record:
        seconds = 60 * task.minutes / (len(draws) * SEEDS)
        record["supervised_steps"] = affordable_steps(
            networks[0], config, train=known.only(draws[0]), seconds=seconds
        )
        _write(task.folder, record)
    steps = record["supervised_steps"]
    config = replace(config, steps=steps)
    correct, seconds, done = np.zeros((len(draws), len(asked.labels))), 0.0, 0
    with Progress(quiet=task.quiet) as progress:
        total = len(draws) * SEEDS
        progress.start(total * steps, images_per_step=config.batch, label=f"{SUPERVISED}: step")
        for number, ids in enumerate(draws):
            for seed, network in enumerate(networks):
                found = supervised_predictions(
                    network, replace(config, seed=seed), train=known.only(ids), test=asked,
                    file=task.folder / "supervised" / f"draw-{number}-seed-{seed}.json",
                )  # fmt: skip
                correct[number] += (found.classes == asked.labels) / SEEDS
                seconds, done = seconds + found.seconds, done + 1
                progress.update(done * steps)
                task.require_no_stop(f"{done} of {total} networks are trained")
    passes = steps * config.batch / count
    about = (
        f"Supervised: {steps:,} steps of {config.batch} labelled images from random "
        f"weights, AdamW at {config.optim.peak_lr(config.batch):.2g} at its peak, layer decay "
        f"{config.layer_decay:g}, whole images flipped at random; one setting for all data, and "
        "for each draw and seed a network of its own."
    )
    return Start(SUPERVISED, [correct], seconds / 60, passes), about
