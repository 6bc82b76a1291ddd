"""What an encoder's features tell about classes, beside a random encoder and the raw pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mae.data.batch import Bad
from mae.data.builtin import fashion_mnist
from mae.data.source import FolderSource, Source
from mae.errors import ConfigError, DataError
from mae.evaluate.features import Standardizer, encoder_features, pixel_features
from mae.evaluate.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy
from mae.evaluate.linear import logistic_accuracy
from mae.evaluate.split import held_out
from mae.jobs.features import (
    DEFAULT,
    FeatureSettings,
    Floats,
    Ints,
    open_for_features,
    prepared_in_batches,
    unreadable,
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
    accuracy: Callable[[Floats, Ints, Floats, Ints], float]
    """Of training features and classes, test features and classes; 0 to 1."""


def choose_method(
    name: Literal["knn", "linear"], *, k: int | None, temperature: float | None, seed: int
) -> Method:
    """Choose between the vote of the nearest neighbours and logistic regression.

    Args:
        name: which.
        k: neighbours; none: the usual number.
        temperature: see `knn_accuracy`; none: the usual one.
        seed: key of the part on which logistic regression chooses its regularisation.

    Raises:
        ConfigError: for a number that the method does not use.
    """
    if name == "knn":
        k = NEIGHBOURS if k is None else k
        temperature = TEMPERATURE if temperature is None else temperature
        return Method(f"k-NN, k = {k}", partial(knn_accuracy, k=k, temperature=temperature))
    if k is not None or temperature is not None:
        raise ConfigError(
            "k and temperature: have no effect on linear, expected with knn; drop them"
        )
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
    *,
    data: str | Path,
    method: Method,
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
        train, test, class_names, said = labelled(data, seed=seed)
        progress.note(said)
        trained = open_for_features(weights, settings, say=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        known = _look(train, (trained, random), settings, progress, label="training picture")
        asked = _look(test, (trained, random), settings, progress, label="test picture")
    _require_all_classes(known.labels, class_names)
    if not len(asked.labels):
        raise DataError("data: no test picture can be read; check the files")
    accuracies = []
    for before, after in zip(known.features, asked.features, strict=True):
        standard = Standardizer.fit(before)
        features = standard.apply(before), known.labels, standard.apply(after), asked.labels
        accuracies.append(method.accuracy(*features))
    return Probe(
        method=method.name,
        pool=settings.pool,
        trained=accuracies[0],
        random=accuracies[1],
        pixels=accuracies[2],
        pixels_size=_pixels_size(trained),
        classes=len(class_names),
        train=len(known.labels),
        test=len(asked.labels),
    )


class Part(NamedTuple):
    """Some pictures of a labelled source."""

    source: Source
    ids: Ints


class Labelled(NamedTuple):
    """Pictures to learn from and pictures to test on."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
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
        known, asked = fashion_mnist("train"), fashion_mnist("test")
        return Labelled(_whole(known), _whole(asked), known.class_names, "built-in pictures")
    train_root = root / "train" if (root / "train").is_dir() else root
    found = _classes(train_root)
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if train_root != root and tests:
        other = _classes(tests[0])
        different = set(found.class_names) ^ set(other.class_names)
        if different:
            raise DataError(
                f"data: {train_root} and {tests[0]} hold different classes: "
                f"{', '.join(sorted(different)[:5])} in one alone; give both the same"
            )
        said = f"learning from {train_root}, testing on {tests[0]}"
        return Labelled(_whole(found), _whole(other), found.class_names, said)
    assert found.labels is not None
    held = held_out(found.labels, TEST_SHARE, seed=seed)
    train, test = Part(found, np.flatnonzero(~held)), Part(found, np.flatnonzero(held))
    said = f"{train_root}: {TEST_SHARE:.0%} of each class held out for testing, seed {seed}"
    return Labelled(train, test, found.class_names, said)


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
    if len(folders) > len(source.class_names):
        empty = [name for name in folders if name not in source.class_names]
        raise DataError(f"data: no pictures of class {empty[0]} in {root}; fill or remove it")
    return source


class _Seen(NamedTuple):
    features: tuple[Floats, ...]
    """n F each: of every encoder, and the raw pixels."""
    labels: Ints


def _look(
    part: Part,
    encoders: tuple[Encoder, ...],
    settings: FeatureSettings,
    progress: Progress,
    *,
    label: str,
) -> _Seen:
    columns: list[list[Floats]] = [[] for _ in (*encoders, "pixels")]
    kept: list[Ints] = []
    bad: list[Bad] = []
    pool = settings.pool
    assert part.source.labels is not None
    progress.start(len(part.ids), label=label)
    for got in prepared_in_batches(encoders[0], part.source, part.ids, batch=settings.batch):
        for column, encoder in zip(columns, encoders, strict=False):
            column.append(encoder_features(encoder, [got.images], pools=[pool])[pool])
        columns[-1].append(pixel_features([_shrunk(got.images, _pixels_size(encoders[0]))]))
        kept.append(part.source.labels[got.ids.numpy()])
        bad += got.bad
        progress.update(sum(map(len, kept)) + len(bad))
    if bad:
        progress.note(unreadable(bad))
    return _Seen(tuple(map(np.concatenate, columns)), np.concatenate(kept))


def _pixels_size(encoder: Encoder) -> tuple[int, int]:
    """Give the size at which a picture is a row of raw pixels."""
    (height, width), channels = encoder.config.image_size, encoder.config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))


def _shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size or not len(images):
        return images if images.shape[-2:] == size else images.new_zeros(0, images.shape[1], *size)
    # Scaling is left to the standardisation, which takes it out again.
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


def _require_all_classes(labels: Ints, class_names: tuple[str, ...]) -> None:
    for number, count in enumerate(np.bincount(labels, minlength=len(class_names))):
        if not count:
            raise DataError(f"data: no picture of class {class_names[number]} can be read")
