"""k-NN and logistic-regression probes of an encoder, a random encoder and raw pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from mae.config.model import refuse_without_effect
from mae.evaluation.evidence import score
from mae.evaluation.features import encoder_features, pixel_features, standardized
from mae.evaluation.few_labels import ALL, FewLabels, image_counts, percent
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    LabelledBatch,
    map_images,
    open_for_features,
)
from mae.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy, require_temperature
from mae.evaluation.labelled_data import labelled, require_classes
from mae.evaluation.logistic import logistic_accuracy
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.parallel.processes import open_communicator
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
    shown = "" if temperature is None else f", temperature {t:g}"
    return Method(f"k-NN, k = {k}{shown}", partial(knn_accuracy, k=k, temperature=t))


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
        counts = image_counts(self.train, self.test, labels=self.labels, runs=self.runs)
        show = partial(percent, runs=self.runs)
        return [
            (self.method, f"{self.classes} classes", counts),
            ("trained encoder", show(self.trained, self.trained_spread),
             ", ".join([f"pool {self.pool}", *behind])),
            ("random encoder", show(self.random, self.random_spread), f"pool {self.pool}"),
            ("raw pixels", show(self.pixels, self.pixels_spread),
             "at {} x {}".format(*self.pixels_size)),
        ]  # fmt: skip


def probe(
    weights: str | Path,
    data: str | Path,
    method: Method,
    *,
    settings: FeatureSettings = DEFAULT,
    few: FewLabels = ALL,
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
        train, test, _, notes = labelled(data, seed=seed, weights=weights)
        for note in notes:
            progress.note(note)
        if not ranks.is_main_process:
            few = few._replace(labels_out=None)
        draws = few.draws(*train, seed=seed, log=progress.note)
        trained = open_for_features(weights, settings.at(ranks.process), log=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        pixels_size, pools = _pixels_size(trained), [settings.pool]

        def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
            images = [batch.images]
            encoded = [encoder_features(e, images, pools=pools) for e in (trained, random)]
            # No scaling: the standardisation would undo it.
            pixels = pixel_features([F.adaptive_avg_pool2d(batch.images.float(), pixels_size)])
            return [batch.ids, batch.labels, *(each[settings.pool] for each in encoded), pixels]

        run = partial(map_images, compute, trained, batch=settings.batch, progress=progress)
        chosen = np.unique(np.concatenate(draws))
        ids, *known = run(train.source, chosen, label="training image", ranks=ranks)
        _, test_labels, *test_features = run(*test, label="test image", ranks=ranks)
        shared = {"ranks": ranks} if ranks.process.world_size > 1 else {}
        accuracies = []
        for draw in draws:
            labels, *features = (column[np.isin(ids, draw)] for column in known)
            require_classes(train.source.class_names, labels)
            accuracies.append([
                method.accuracy(x, labels, y, test_labels, **shared)
                for x, y in map(standardized, features, test_features)
            ])  # fmt: skip
    scores = [score(each) for each in zip(*accuracies, strict=True)]
    names = ("trained", "random", "pixels")
    return Probe(
        method.name,
        settings.pool,
        **{name: each.mean for name, each in zip(names, scores, strict=True)},
        **{f"{name}_spread": each.spread for name, each in zip(names, scores, strict=True)},
        pixels_size=pixels_size,
        classes=len(train.source.class_names),
        train=int(np.isin(ids, draws[0]).sum()),
        test=len(test_labels),
        labels=few.labels,
        runs=len(draws),
    )


def _pixels_size(encoder: Encoder) -> tuple[int, int]:
    """Return the image size of the raw-pixel features."""
    (height, width), channels = encoder.config.image_size, encoder.config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))
