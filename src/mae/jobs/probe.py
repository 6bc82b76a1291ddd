"""What an encoder's features tell about classes, beside a random encoder and the raw pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from mae.data.batch import Bad
from mae.data.builtin import fashion_mnist
from mae.data.source import FolderSource, Source
from mae.errors import ConfigError, DataError
from mae.evaluate.features import Array, Labels, encoder_features, pixel_features, standardized
from mae.evaluate.knn import NEIGHBOURS, knn_accuracy
from mae.evaluate.linear import logistic_accuracy
from mae.evaluate.split import held_out
from mae.jobs.features import (
    DEFAULT,
    FeatureSettings,
    open_for_features,
    prepared_in_batches,
    tell_unreadable,
)
from mae.jobs.inputs import BUILT_IN
from mae.jobs.progress import Progress
from mae.model.create import create
from mae.model.encoder import Encoder

TEST_SHARE = 0.2
TEST_FOLDERS = ("val", "validation", "test")
MOST_PIXEL_VALUES = 1024  # of a picture as a row of raw pixels: 32 x 32 in grey, 18 x 18 in colour


class Method(NamedTuple):
    """A way to classify by features."""

    name: str
    accuracy: Callable[[Array, Labels, Array, Labels], float]
    """Of training features and classes, test features and classes; 0 to 1."""


def choose_method(name: Literal["knn", "linear"], *, k: int | None, seed: int) -> Method:
    """Choose between the vote of the k nearest neighbours and logistic regression.

    Args:
        name: which.
        k: neighbours; none: the usual number.
        seed: key of the part on which logistic regression chooses its regularisation.

    Raises:
        ConfigError: for a number of neighbours that the method does not use.
    """
    if name == "knn":
        k = NEIGHBOURS if k is None else k
        return Method(f"k-NN, k = {k}", partial(knn_accuracy, k=k))
    if k is not None:
        raise ConfigError("k: has no effect on linear, expected with knn; drop it")
    return Method("logistic regression", partial(logistic_accuracy, seed=seed))


class Probe(NamedTuple):
    """Share of the test pictures that were classified correctly."""

    method: str
    pool: str
    trained: float
    random: float
    """The same network, untrained."""
    pixels: float
    """Raw pixels of the same view."""
    pixels_size: tuple[int, int]
    classes: int
    train: int
    """Pictures learnt from."""
    test: int

    def rows(self) -> list[tuple[str, str, str]]:
        """Give the lines of a table."""
        others = (("raw pixels", self.pixels), ("random encoder", self.random))
        behind = [f"behind {name}" for name, other in others if self.trained < other]
        size = "at {} x {}".format(*self.pixels_size)
        return [
            (self.method, f"{self.classes} classes", f"{self.train:,} train, {self.test:,} test"),
            ("trained encoder", f"{self.trained:.1%}", ", ".join([f"pool {self.pool}", *behind])),
            ("random encoder", f"{self.random:.1%}", f"pool {self.pool}"),
            ("raw pixels", f"{self.pixels:.1%}", size),
        ]


def probe(
    weights: str | Path,
    data: str | Path,
    method: Method,
    *,
    settings: FeatureSettings = DEFAULT,
    seed: int = 0,
    quiet: bool = False,
) -> Probe:
    """Classify test pictures by features that are standardised on the training pictures.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        method: how to classify.
        settings: how features are computed.
        seed: key of the held-out pictures and of the random encoder.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with Progress(quiet=quiet) as progress:
        train, test, said = labelled(data, seed=seed)
        progress.note(said)
        trained = open_for_features(weights, settings, say=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        known = _look(train, (trained, random), settings, progress, label="training picture")
        asked = _look(test, (trained, random), settings, progress, label="test picture")
    class_names = train.source.class_names
    for number, class_name in enumerate(class_names):
        if number not in known.labels:
            raise DataError(f"data: no picture of class {class_name} can be read")
    trained_one, random_one, pixels = (
        method.accuracy(train_x, known.labels, test_x, asked.labels)
        for train_x, test_x in map(standardized, known.features, asked.features)
    )
    size, counts = _pixels_size(trained), (len(class_names), len(known.labels), len(asked.labels))
    return Probe(method.name, settings.pool, trained_one, random_one, pixels, size, *counts)


class Part(NamedTuple):
    """Some pictures of a labelled source."""

    source: Source
    ids: NDArray[np.int64]


class Labelled(NamedTuple):
    """Pictures to learn from and pictures to test on, of the same classes."""

    train: Part
    test: Part
    said: str
    """How they were divided."""


def labelled(data: str | Path, *, seed: int) -> Labelled:
    """Find labelled pictures and divide them.

    Args:
        data: "fashion-mnist" (built in); or a folder with train/ and val/, validation/ or test/,
            each of one folder per class; or a folder of one folder per class, of which a fifth
            of each class is held out.
        seed: key of what is held out.

    Raises:
        DataError: if there are no classes, one alone, an empty one, or others in either part.
    """
    root = Path(data)
    if data == BUILT_IN and not root.exists():
        train, test = _whole(fashion_mnist("train")), _whole(fashion_mnist("test"))
        return Labelled(train, test, "built-in pictures")
    train_root = root / "train" if (root / "train").is_dir() else root
    source = _classes(train_root)
    for test_root in (root / name for name in TEST_FOLDERS if train_root != root):
        if test_root.is_dir():
            other = _classes(test_root)
            if different := sorted(set(source.class_names) ^ set(other.class_names)):
                raise DataError(
                    f"data: {train_root} and {test_root} hold different classes: "
                    f"{', '.join(different[:5])} in one alone; give both the same"
                )
            said = f"learning from {train_root}, testing on {test_root}"
            return Labelled(_whole(source), _whole(other), said)
    assert source.labels is not None
    held = held_out(source.labels, TEST_SHARE, seed=seed)
    train, test = (Part(source, np.flatnonzero(part)) for part in (~held, held))
    said = f"{train_root}: {TEST_SHARE:.0%} of each class held out for testing, seed {seed}"
    return Labelled(train, test, said)


def _whole(source: Source) -> Part:
    return Part(source, np.arange(len(source)))


def _classes(root: Path) -> FolderSource:
    source = FolderSource(root)
    folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    if source.labels is None:
        one = f"one class alone, {folders[0]}" if len(folders) == 1 else "no classes"
        raise DataError(
            f"data: {root} has {one}; expected every picture in one of at least two folders, "
            "which are the classes"
        )
    for empty in sorted({*folders} - {*source.class_names}):
        raise DataError(f"data: no pictures of class {empty} in {root}; fill or remove it")
    return source


class _Seen(NamedTuple):
    features: tuple[Array, ...]
    """n F each: of every encoder, and the raw pixels."""
    labels: Labels


def _look(
    part: Part,
    encoders: Sequence[Encoder],
    settings: FeatureSettings,
    progress: Progress,
    *,
    label: str,
) -> _Seen:
    pieces, pool, (source, ids) = [], settings.pool, part
    bad: list[Bad] = []
    size = _pixels_size(encoders[0])
    assert source.labels is not None
    progress.start(len(ids), label=label)
    for got in prepared_in_batches(encoders[0], source, ids.tolist(), batch=settings.batch):
        seen = [encoder_features(encoder, [got.images], pools=[pool])[pool] for encoder in encoders]
        # Scaling is left to the standardisation, which takes it out again.
        pixels = pixel_features([F.adaptive_avg_pool2d(got.images.float(), size)])
        pieces.append((*seen, pixels, source.labels[got.ids.numpy()]))
        bad += got.bad
        progress.update(sum(len(piece[-1]) for piece in pieces) + len(bad))
    tell_unreadable(len(ids), bad, say=progress.note)
    *features, labels = map(np.concatenate, zip(*pieces, strict=True))
    return _Seen(tuple(features), labels)


def _pixels_size(encoder: Encoder) -> tuple[int, int]:
    """Give the size at which a picture is a row of raw pixels."""
    (height, width), channels = encoder.config.image_size, encoder.config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))
