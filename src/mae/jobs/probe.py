"""k-NN and logistic-regression probes of an encoder, a random encoder and raw pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch.nn.functional as F

from mae.config.model import refuse_without_effect
from mae.evaluation.divided import tuned_on
from mae.evaluation.evidence import score
from mae.evaluation.features import Array, Labels, encoder_features, pixel_features, standardized
from mae.evaluation.few_labels import Ids
from mae.evaluation.few_options import ALL, FewSettings, counted, percent
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    labelled_in_batches,
    open_for_features,
)
from mae.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy, require_temperature
from mae.evaluation.labelled_data import Part, labelled, require_classes
from mae.evaluation.logistic import logistic_accuracy
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.parallel.processes import Communicator, open_communicator
from mae.progress import Progress

MOST_PIXEL_VALUES = 1024  # raw-pixel features per image: 32 x 32 in grey, 18 x 18 in colour


class Method(NamedTuple):
    """A classifier on features."""

    name: str
    accuracy: Callable[..., float]
    """Accuracy, 0 to 1, from training features and classes, test features and classes. With several
    processes, `ranks` names those that split the test features."""


def choose_method(
    name: Literal["knn", "linear"], *, k: int | None, temperature: float | None = None, seed: int
) -> Method:
    """Choose between k-NN and logistic regression.

    Args:
        name: name of the method.
        k: number of neighbours; none: NEIGHBOURS.
        temperature: temperature of the neighbours' votes; none: TEMPERATURE.
        seed: seed of the validation part on which logistic regression chooses its regularisation.

    Raises:
        ConfigError: for an option that the method does not use, or an invalid temperature.
    """
    if name == "linear":
        refuse_without_effect("linear", "knn", k=k, temperature=temperature)
        return Method("logistic regression", partial(logistic_accuracy, seed=seed))
    k = NEIGHBOURS if k is None else k
    t = TEMPERATURE if temperature is None else temperature
    require_temperature(t)
    said = "" if temperature is None else f", temperature {t:g}"
    return Method(f"k-NN, k = {k}{said}", partial(knn_accuracy, k=k, temperature=t))


class Probe(NamedTuple):
    """Accuracy on the test images, 0 to 1, mean and std over all runs."""

    method: str
    pool: str
    trained: float
    random: float
    """Of the same network, untrained."""
    pixels: float
    """Of raw pixels of the same view."""
    pixels_size: tuple[int, int]
    classes: int
    train: int
    """Number of training images."""
    test: int
    labels: str | None = None
    """The few labels that were asked for; None: all."""
    runs: int = 1
    trained_spread: float = 0.0
    random_spread: float = 0.0
    pixels_spread: float = 0.0

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table."""
        others = (("raw pixels", self.pixels), ("random encoder", self.random))
        behind = [f"behind {name}" for name, other in others if self.trained < other]
        size = "at {} x {}".format(*self.pixels_size)
        trained, random, pixels = (
            percent(mean, spread, runs=self.runs)
            for mean, spread in (
                (self.trained, self.trained_spread),
                (self.random, self.random_spread),
                (self.pixels, self.pixels_spread),
            )
        )
        counts = counted(self.train, self.test, labels=self.labels, runs=self.runs)
        return [
            (self.method, f"{self.classes} classes", counts),
            ("trained encoder", trained, ", ".join([f"pool {self.pool}", *behind])),
            ("random encoder", random, f"pool {self.pool}"),
            ("raw pixels", pixels, size),
        ]


def probe(
    weights: str | Path,
    data: str | Path,
    method: Method,
    *,
    settings: FeatureSettings = DEFAULT,
    few: FewSettings = ALL,
    seed: int = 0,
    quiet: bool = False,
) -> Probe:
    """Classify test images by features standardised on the training images.

    Processes started by torchrun split the images, then the test features; the accuracies are
    bit-identical to those of one process.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        method: how to classify.
        settings: how features are computed.
        few: how many labels to train on.
        seed: seed of the held-out images, the few labels and the random encoder. A fine-tuned
            classifier's own data are split as in its run, whose training images it has seen.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        if few.labels is None:
            refuse_without_effect("all labels", "--labels", seeds=few.runs)
        train, test, _, notes = labelled(data, seed=seed, tuned=tuned_on(weights))
        for note in notes:
            progress.note(note)
        if not ranks.is_main_process:
            few = few._replace(labels_out=None)
        draws = few.draws(*train, seed=seed, say=progress.note)
        trained = open_for_features(weights, settings.at(ranks.process), say=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        learnt = Part(train.source, np.unique(np.concatenate(draws)))
        look = partial(_look, encoders=(trained, random), settings=settings, progress=progress)
        known = look(learnt, label="training picture", ranks=ranks)
        asked = look(test, label="test picture", ranks=ranks)
        names = train.source.class_names
        accuracies = partial(_accuracies, method, asked=asked, names=names, ranks=ranks)
        found = [accuracies(known.only(ids)) for ids in draws]
    trained_one, random_one, pixels = (score(each) for each in zip(*found, strict=True))
    return Probe(
        method.name,
        settings.pool,
        trained_one.mean,
        random_one.mean,
        pixels.mean,
        pixels_size=_pixels_size(trained),
        classes=len(names),
        train=len(known.only(draws[0]).ids),
        test=len(asked.labels),
        labels=few.labels,
        runs=len(draws),
        trained_spread=trained_one.spread,
        random_spread=random_one.spread,
        pixels_spread=pixels.spread,
    )


def _accuracies(
    method: Method, known: _Seen, *, asked: _Seen, names: Sequence[str], ranks: Communicator
) -> list[float]:
    """Return the accuracy of each type of features."""
    require_classes(names, known.labels)
    shared = {"ranks": ranks} if ranks.process.world_size > 1 else {}
    kinds = map(standardized, known.features, asked.features)
    return [method.accuracy(x, known.labels, y, asked.labels, **shared) for x, y in kinds]


class _Seen(NamedTuple):
    features: tuple[Array, ...]
    """n F each: one array per encoder, then the raw pixels."""
    labels: Labels
    ids: Ids

    def only(self, ids: Ids) -> _Seen:
        """Return the rows of some images."""
        rows = np.isin(self.ids, ids)
        return _Seen(tuple(f[rows] for f in self.features), self.labels[rows], self.ids[rows])


def _look(
    part: Part,
    *,
    encoders: Sequence[Encoder],
    settings: FeatureSettings,
    progress: Progress,
    label: str,
    ranks: Communicator,
) -> _Seen:
    pieces, pool = [], settings.pool
    size = _pixels_size(encoders[0])
    for got in labelled_in_batches(
        encoders[0], *part, batch=settings.batch, progress=progress, label=label, ranks=ranks
    ):
        seen = [encoder_features(encoder, [got.images], pools=[pool])[pool] for encoder in encoders]
        # No scaling: the standardisation would undo it.
        pixels = pixel_features([F.adaptive_avg_pool2d(got.images.float(), size)])
        pieces.append((*seen, pixels, got.labels, got.ids))
    everyones = [piece for each in ranks.all_gather(pieces) for piece in each]
    *features, labels, ids = map(np.concatenate, zip(*everyones, strict=True))
    order = ids.argsort()
    return _Seen(tuple(kind[order] for kind in features), labels[order], ids[order])


def _pixels_size(encoder: Encoder) -> tuple[int, int]:
    """Return the image size of the raw-pixel features."""
    (height, width), channels = encoder.config.image_size, encoder.config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))
