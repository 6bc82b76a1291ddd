"""Classifiers to and from the disk: a folder of ours, or a published fine-tuned file; strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mae.errors import WeightsError
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.detect import RawWeights, read_weights
from mae.weights.folder import ClassifierDescription, write_folder
from mae.weights.load import fill
from mae.weights.shapes import config_of

_EXPECTED = "a classifier, with fc_norm (mean of the patches) or the encoder's norm (cls token)"


class LoadedClassifier(NamedTuple):
    """A classifier and the names of its classes."""

    model: Classifier
    class_names: tuple[str, ...]
    """In the order of the scores; numbers where the file names none."""


def save_classifier(
    classifier: Classifier,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write a classifier as a folder that describes itself; files of an earlier one are replaced.

    Args:
        classifier: on any device; not changed.
        folder: made if it is not there.
        class_names: in the order of the scores.
        facts: where the weights come from, as JSON values.

    Raises:
        ConfigError: if it cannot be written.
    """
    description = ClassifierDescription(
        model=classifier.encoder.config,
        facts=dict(facts or {}),
        class_names=tuple(class_names),
        pool=classifier.pool,
    )
    tensors = {name: t.cpu().contiguous() for name, t in classifier.state_dict().items()}
    return write_folder(Path(folder), description, tensors)


def load_classifier(path: str | Path, *, heads: int | None = None) -> LoadedClassifier:
    """Load a classifier: a folder of ours, a run, or a file of the published layout.

    Args:
        path: what holds it.
        heads: attention heads, for files that do not hold them and are of no known width.

    Raises:
        WeightsError: for weights without a head, or anything missing, left over, of another
            shape or not finite.
    """
    raw = read_weights(path)
    head = raw.tensors.get("head.weight")
    if head is None or head.ndim != 2:
        raise WeightsError(
            f"{raw.path}: has no classifier's head (head.weight), expected fine-tuned weights; "
            "fine-tune them first (mae finetune), or use mae probe"
        )
    # Of the encoder by itself: what a decoder leaves open is no question, but left over below.
    own = {name: tensor for name, tensor in raw.tensors.items() if name.startswith("encoder.")}
    config, _ = config_of(raw._replace(tensors=own), heads=heads)
    names, mean = _names_and_pool(raw, num_classes=len(head))
    with torch.device("meta"):
        pool = "mean" if mean else "cls"
        model = Classifier(Encoder(config), num_classes=len(head), pool=pool)  # type: ignore[arg-type]
    fill(model, raw, expected=_EXPECTED)
    return LoadedClassifier(model, names)


def _names_and_pool(raw: RawWeights, *, num_classes: int) -> tuple[tuple[str, ...], bool]:
    """Give the names of the classes, and whether the mean of the patches is classified."""
    said = raw.description
    if not isinstance(said, ClassifierDescription):
        return tuple(map(str, range(num_classes))), "fc_norm.weight" in raw.tensors
    if len(said.class_names) != num_classes:
        raise WeightsError(
            f"{raw.path}: its head has {num_classes} classes, its description names "
            f"{len(said.class_names)}; restore the folder as it was written"
        )
    return said.class_names, said.pool == "mean"
