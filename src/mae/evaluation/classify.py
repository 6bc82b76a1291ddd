"""Classify labelled images with a fine-tuned classifier, all classes or some to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae.config.model import refuse_without_effect
from mae.data.batching.batch import View
from mae.data.sources.source import Source
from mae.errors import DataError, WeightsError
from mae.evaluation.discover import some
from mae.evaluation.inputs import (
    FeatureSettings,
    LabelledBatch,
    Weights,
    for_inference,
    map_images,
)
from mae.evaluation.metrics import Predictions, log_probabilities, predictions_from_scores
from mae.evaluation.precision import set_precision
from mae.evaluation.robustness import set_classes
from mae.evaluation.split import Ids, Labels
from mae.model.classifier import Classifier
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.progress import Progress
from mae.weights.load import LoadedClassifier, open_classifier

TOP = 5
IMAGENET_CLASSES = 1000


class Candidates(NamedTuple):
    """The classes that a classifier chooses from for the images of a source."""

    classes: Ids
    """Indices of the model's classes to choose from."""
    positions: Ids
    """Position in `classes` of each class of the source."""
    about: str = "all classes"
    absent: Sequence[str] = ()
    """Classes of the model without any image."""

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Return the names of the classes to choose from."""
        return [class_names[i] for i in self.classes]


def open_for_evaluation(
    weights: Weights, settings: FeatureSettings, *, log: Callable[[str], None]
) -> LoadedClassifier:
    """Load a classifier onto its device, and report the assumptions made.

    Args:
        weights: a classifier in memory is not changed.
        settings: device, view and precision.
        log: called with each note.

    Raises:
        WeightsError: for weights without a head.
    """
    device = settings.checked_device()
    if isinstance(weights, nn.Module):
        found = _in_memory(weights, settings)
    else:
        found, notes = open_classifier(
            weights, pool=settings.head_pool, crop_pct=settings.crop_pct, **settings.given
        )
        for note in notes:
            log(note)
        found.model.to(device).eval()
    set_precision(found.model.encoder, settings.precision, log=log)
    return found


def _in_memory(network: nn.Module, settings: FeatureSettings) -> LoadedClassifier:
    if not isinstance(network, Classifier):
        raise WeightsError(
            f"weights: got {type(network).__name__} in memory, which has no classifier's head; "
            "fine-tune it first (mae.finetune), or use mae.probe"
        )
    refuse_without_effect("a network in memory", "weights in a file", pool=settings.head_pool)
    names = network.class_names or tuple(map(str, range(network.head.out_features)))
    return LoadedClassifier(for_inference(network, settings), names)


def classify(
    model: Classifier,
    source: Source,
    candidates: Candidates,
    *,
    batch: int,
    progress: Progress,
    label: str = "image",
    view: View | None = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> Predictions:
    """Classify every readable image of a labelled source.

    Args:
        model: on the device to use, in evaluation mode.
        source: labelled images.
        candidates: the classes to choose from.
        batch: images classified at a time.
        progress: shows the images of this process.
        label: name of an image in the progress display.
        view: view of an image; none: the evaluation view of the model.
        ranks: the processes that divide the images; all of them return all predictions.
    """
    kept = torch.from_numpy(candidates.classes)

    def predict(images: LabelledBatch) -> Predictions:
        scores = class_scores(model, images.images)
        labels: Labels = candidates.positions[images.labels]
        return predictions_from_scores(scores[:, kept], labels=labels, ids=images.ids)

    every = np.arange(len(source))
    how = {"batch": batch, "progress": progress, "label": label, "view": view, "ranks": ranks}
    return Predictions(*map_images(predict, model.encoder, source, every, **how))  # type: ignore[arg-type]


@torch.inference_mode()
def class_scores(model: Classifier, images: Tensor) -> Tensor:
    """Return the class scores B K, on the CPU, of images B C H W of the stored type."""
    encoder = model.encoder
    scores: Tensor = model(encoder.normalize(images.to(encoder.cls_token.device)))
    return scores.cpu()


def class_probabilities(model: Classifier, images: Tensor) -> NDArray[np.float64]:
    """Return the class probabilities B K of images B C H W of the stored type.

    Raises:
        WeightsError: if the classifier gives non-finite scores.
    """
    return log_probabilities(class_scores(model, images)).exp().numpy()


def find_candidates(
    source: Source, names: Sequence[str], *, dataset: str = "folder", all_classes: bool = False
) -> Candidates:
    """Match the classes of a folder with those of a classifier, by name.

    Args:
        source: labelled images.
        names: classes of the classifier, in the order of its scores.
        dataset: imagenet-a and imagenet-r are restricted to their 200 classes.
        all_classes: do not restrict them.

    Raises:
        DataError: if a folder matches no class of the classifier, or if the folders of
            imagenet-a or imagenet-r are not exactly their 200 classes.
    """
    numbers = {name: number for number, name in enumerate(names)}
    K, unknown = len(names), [name for name in source.class_names if name not in numbers]
    if unknown:
        raise DataError(
            f"data: {len(unknown)} of {len(source.class_names)} classes are unknown to the "
            f"classifier: {', '.join(unknown[:3])}; expected folders named as its {K} classes: "
            f"{', '.join(names[:3])} ..."
        )
    own = np.array([numbers[name] for name in source.class_names], dtype=np.int64)
    if dataset in ("imagenet-a", "imagenet-r"):
        if K != IMAGENET_CLASSES or sorted(own.tolist()) != set_classes(dataset):  # type: ignore[arg-type]
            raise DataError(
                f"data: {len(own)} folders, which are not the 200 classes of {dataset} among the "
                f"1,000 of ImageNet; the classifier has {K}. Check --data, or use --set folder"
            )
        if all_classes:
            return Candidates(np.arange(K), own, f"the scores of all {K:,} classes compared")
        classes, about = np.sort(own), f"restricted to the scores of its {len(own)} classes"
        return Candidates(classes, np.searchsorted(classes, own), about)
    labels = () if source.labels is None else np.unique(source.labels).tolist()
    present = {source.class_names[label] for label in labels}
    absent = [name for name in names if name not in present]
    lacking = f", no image of {len(absent):,}: {some(absent, 3)}" if absent else ""
    return Candidates(np.arange(K), own, f"{K:,} classes{lacking}", absent)
