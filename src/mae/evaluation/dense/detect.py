"""Detect objects with a trained detector, and score its boxes and masks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from mae.data.augment.crop import resized_crop
from mae.data.batching.batch import Bad, SourceReader, channels_first
from mae.data.decoding.decode import PixelKind, ignore_message
from mae.data.decoding.header import kind_of
from mae.data.detection.jitter import decoded_boxed
from mae.data.detection.source import Boxed, BoxSource, Instances, coco_of
from mae.data.segmentation.coco import run_lengths_of
from mae.data.segmentation.crop import resized_size
from mae.data.types import Log, Pixels, Size
from mae.evaluation.dense.detection_metrics import (
    DetectorScores,
    detection_scores,
    find_library,
)
from mae.evaluation.dense.detection_mistakes import Compared, DetectedObjects, compare
from mae.evaluation.inputs import report_unreadable
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.transfer.detector import Detector, require_torchvision
from mae.weights.given import Given
from mae.weights.load import open_detector
from mae.weights.read import read_weights


class DetectView(NamedTuple):
    """How a detector sees an image: resized to just fit, the right and the bottom padded.

    Source: Li et al. 2022 (ViTDet): short side 1024, long side at most 1024, padded to 1024 x 1024.
    """

    size: Size
    """Height and width, in pixels."""

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> DetectView | None:
        """Return the view that is stored with weights, see `facts`; None if there is none."""
        view = facts.get("view")
        return None if view is None else cls(tuple(view["size"]))

    def facts(self) -> dict[str, object]:
        """Return the view as JSON values."""
        return {"size": list(self.size)}

    def text(self) -> str:
        """Return the view in words."""
        return f"resized to fit into {self.size[0]} x {self.size[1]} pixels, and padded"


def require_detect_extra() -> None:
    """Import what detectors are trained and scored with, before any work.

    Raises:
        ConfigError: if torchvision, or both libraries of scores, are not installed.
    """
    require_torchvision()
    find_library()


class OpenedDetector(NamedTuple):
    """A detector on its device, in evaluation mode."""

    model: Detector
    view: DetectView


def open_for_detecting(
    weights: str | os.PathLike[str], *, device: str, given: Given, log: Log
) -> OpenedDetector:
    """Load a detector, and report what was assumed and how it sees images.

    Raises:
        ConfigError: if torchvision is not installed.
        WeightsError: for other weights.
    """
    where = choose_device(device)
    raw = read_weights(weights, **given)
    model, notes = open_detector(raw)
    for note in notes:
        log(note)
    stored = DetectView.of_facts(raw.metadata.facts)
    view = stored or DetectView(model.encoder.config.image_size)
    log(f"images: {view.text()}{'' if stored else '; not in the weights'}")
    return OpenedDetector(model.to(where).eval(), view)


@torch.inference_mode()
def detected_objects(
    model: Detector, pixels: Pixels, view: DetectView, *, score: float = 0.0
) -> DetectedObjects:
    """Return the objects of an image, in its own pixels.

    Args:
        model: on its device, in evaluation mode.
        pixels: H W C of the type that the model was trained on.
        view: size.
        score: lowest score of the objects.
    """
    H, W, _ = pixels.shape
    (height, width), encoder = view.size, model.backbone.encoder
    size = resized_size((H, W), min(height / H, width / W))
    resized = pixels if size == (H, W) else resized_crop(pixels, (0, 0, H, W), size=size)
    device = next(model.parameters()).device
    # Copied: Pillow's pixels cannot be written, which torch requires.
    image = encoder.normalize(channels_first(np.array(resized[None])).to(device))
    padded = F.pad(image, (0, width - size[1], 0, height - size[0]))
    found = model(padded, sizes=[size])[0].above(score).resized(size, to=(H, W))
    N, boxes = len(found.boxes), found.boxes.cpu().numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1).astype(np.float64)
    segmentations: tuple[Any, ...] = (None,) * N
    if found.masks is not None:
        # One at a time: those of a large image would fill the memory.
        masks = (found.mask(place, size=(H, W)).cpu().numpy() for place in range(N))
        drawn = [(run_lengths_of(mask), mask.sum()) for mask in masks]
        segmentations = tuple(runs for runs, _ in drawn)
        areas = np.array([area for _, area in drawn], dtype=np.float64)
    classes, crowd = found.classes.cpu().numpy(), np.zeros(N, dtype=np.bool_)
    instances = Instances((H, W), boxes, classes, crowd, areas, segmentations)
    return DetectedObjects(instances, found.scores.cpu().numpy())


class DetectedImage(NamedTuple):
    """An image with boxes, and what a detector finds in it."""

    id: int
    """Position in the source."""
    name: str
    objects: DetectedObjects
    truth: Instances
    compared: Compared


class Detected(NamedTuple):
    """What a detector gives for images with boxes."""

    scores: DetectorScores
    images: tuple[DetectedImage, ...]
    """In the order of the source."""
    unreadable: tuple[str, ...]

    def coco(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the detections in COCO's form, see `coco_results`."""
        return coco_results(((each.id, each.name, each.objects) for each in self.images), classes)


def score_boxes(
    model: Detector,
    source: BoxSource,
    view: DetectView,
    *,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> Detected:
    """Detect the objects of images one by one, and score them.

    Args:
        model: on its device, in evaluation mode.
        source: images and objects of the classes of the model.
        view: how the model sees them.
        progress: shows the images of this process.
        ranks: the processes that divide the images; all of them return the same.

    Raises:
        ConfigError: if no library of scores is installed.
        DataError: if no image can be read.
    """
    find_library()
    reader, process = SourceReader(source.pairs), ranks.process
    use = partial(_decoded, kind=kind_of(model.backbone.encoder.config))
    own, found = process.shard(range(len(source))), list[DetectedImage]()
    progress.start(len(own), label="image searched")
    for done, index in enumerate(own, start=1):
        if (pair := reader.read(index, use)) is not None:
            pixels, truth = pair
            objects = detected_objects(model, pixels, view)
            compared = compare(objects, truth, source.box_classes)
            found.append(DetectedImage(index, source.name(index), objects, truth, compared))
        progress.update(done)
    everyone = ranks.all_gather((found, reader.bad, reader.warned))
    parts, bad, warned = (list[Any](chain(*each)) for each in zip(*everyone, strict=True))
    unreadable: list[Bad] = sorted(bad)
    images: list[DetectedImage] = sorted(parts, key=lambda image: image.id)
    report_unreadable(len(source), unreadable, sorted(warned), log=progress.note)
    masks = model.has_masks and source.has_masks
    scores = ranks.on_main(lambda: _scores(images, source.box_classes, masks=masks))
    return Detected(scores, tuple(images), tuple(each.name for each in unreadable))


def _decoded(
    boxed: Boxed, *, kind: PixelKind, warn: Log = ignore_message
) -> tuple[Pixels, Instances]:
    return decoded_boxed(boxed, kind=kind, warn=warn), boxed.instances


def _scores(
    images: Sequence[DetectedImage], classes: Sequence[str], *, masks: bool
) -> DetectorScores:
    """Return the scores of boxes, and of masks if asked."""
    truth = coco_of(((each.id, each.name, each.truth) for each in images), classes)
    results = coco_results(((each.id, each.name, each.objects) for each in images), classes)
    rows = results["annotations"]
    of_masks = detection_scores(truth, rows, iou="segm") if masks else None
    return DetectorScores(detection_scores(truth, rows), of_masks)


def coco_results(
    images: Iterable[tuple[int, str, DetectedObjects]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return detections in COCO's form, see `coco_of`; the annotations are COCO's results.

    Boxes are rounded to hundredths of a pixel.

    Args:
        images: position, name and detections of each.
        classes: names.
    """
    found = [*images]
    values = coco_of(((i, name, each.instances) for i, name, each in found), classes)
    scores = [float(score) for *_, each in found for score in each.scores]
    for row, score in zip(values["annotations"], scores, strict=True):
        row["bbox"] = [round(side, 2) for side in row["bbox"]]
        row |= {"score": round(score, 5), "category": classes[row["category_id"] - 1]}
    return values
