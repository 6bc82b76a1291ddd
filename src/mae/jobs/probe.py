"""What an encoder's features tell about classes, beside a random encoder and the raw pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.data.batch import Bad, prepared
from mae.data.builtin import fashion_mnist
from mae.data.decode import PixelKind
from mae.data.source import FolderSource, Source
from mae.errors import DataError
from mae.evaluate.features import Standardizer, encoder_features, pixel_features
from mae.evaluate.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy
from mae.evaluate.linear import logistic_accuracy
from mae.evaluate.split import held_out
from mae.jobs.embed import open_for_features, say_bad
from mae.jobs.inputs import BUILT_IN
from mae.jobs.progress import Progress
from mae.model.create import create
from mae.model.encoder import Encoder, Pool
from mae.weights.shapes import Told

HELD_OUT_SHARE = 0.2
TEST_FOLDERS = ("val", "validation", "test")
MOST_PIXEL_VALUES = 1024  # of a picture as a row of raw pixels: 18 x 18 in colour, 32 x 32 in grey

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Measure = Callable[[Floats, Ints, Floats, Ints], float]


class Probe(NamedTuple):
    """Share of the test pictures that were classified correctly."""

    method: str
    trained: float
    random: float
    """The same network, untrained, under the same treatment."""
    pixels: float
    """Raw pixels, under the same treatment."""
    pixels_size: tuple[int, int]
    pool: str
    train: int
    """Pictures learnt from."""
    test: int
    classes: int

    def rows(self) -> list[tuple[str, str, str]]:
        """Give the lines of a table."""
        height, width = self.pixels_size
        behind = [
            f"behind {name}"
            for name, other in (("raw pixels", self.pixels), ("the random encoder", self.random))
            if self.trained < other
        ]
        return [
            (self.method, f"{self.classes} classes", f"{self.train:,} train, {self.test:,} test"),
            ("trained encoder", f"{self.trained:.1%}", "; ".join([f"pool {self.pool}", *behind])),
            ("random encoder", f"{self.random:.1%}", f"pool {self.pool}"),
            ("raw pixels", f"{self.pixels:.1%}", f"at {height} x {width}"),
        ]


class Part(NamedTuple):
    """Labelled pictures of a source."""

    source: Source
    ids: Ints
    labels: Ints
    """Of the same length."""


class Labelled(NamedTuple):
    """Pictures to learn from and pictures to test on."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
    said: str
    """How they were divided."""


def knn(
    weights: str | Path,
    *,
    data: str | Path,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    seed: int = 0,
    told: Told = Told(),
    quiet: bool = False,
) -> Probe:
    """Classify test pictures by the training pictures nearest in feature space.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        k, temperature: see `knn_accuracy`.
        pool: see `Encoder.encode`.
        batch: pictures encoded at a time.
        device: see `choose_device`.
        seed: key of the held-out pictures and of the random encoder.
        told: what weights that do not describe themselves leave open.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """

    def measure(train_x: Floats, train_y: Ints, test_x: Floats, test_y: Ints) -> float:
        return knn_accuracy(train_x, train_y, test_x, test_y, k=k, temperature=temperature)

    return _probe(
        f"k-NN, k = {k}", measure, weights, data=data, pool=pool, batch=batch, device=device,
        seed=seed, told=told, quiet=quiet,
    )  # fmt: skip


def linear(
    weights: str | Path,
    *,
    data: str | Path,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    seed: int = 0,
    told: Told = Told(),
    quiet: bool = False,
) -> Probe:
    """Classify test pictures by logistic regression on the features of training pictures.

    Args and errors are those of `knn`.
    """

    def measure(train_x: Floats, train_y: Ints, test_x: Floats, test_y: Ints) -> float:
        return logistic_accuracy(train_x, train_y, test_x, test_y, seed=seed)

    return _probe(
        "logistic regression", measure, weights, data=data, pool=pool, batch=batch,
        device=device, seed=seed, told=told, quiet=quiet,
    )  # fmt: skip


def _probe(
    method: str,
    measure: Measure,
    weights: str | Path,
    *,
    data: str | Path,
    pool: Pool,
    batch: int,
    device: str,
    seed: int,
    told: Told,
    quiet: bool,
) -> Probe:
    with Progress(quiet=quiet) as progress:
        pictures = labelled(data, seed=seed)
        progress.note(pictures.said)
        trained = open_for_features(weights, told=told, device=device, say=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device)
        seeing = _Seeing(trained, random, pool, batch, progress)
        train, test = (seeing.look(p, label=f"{n} pictures") for p, n in zip(pictures, ("training", "test")))
        accuracies = []
    raise NotImplementedError
