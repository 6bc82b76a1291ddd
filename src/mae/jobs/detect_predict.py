"""Detect objects in images without boxes: overlays, boxes in COCO's form, and cut objects."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from PIL import Image

from mae.atomic import write_json_atomic
from mae.data.batching.batch import SourceReader
from mae.data.sources.images import open_inputs
from mae.errors import ConfigError
from mae.evaluation.dense.detect import coco_results, detected_objects, open_for_detecting
from mae.evaluation.dense.detection_mistakes import DetectedObjects
from mae.evaluation.discover import some
from mae.evaluation.inputs import decoded_images
from mae.progress import Progress
from mae.report.boxes import DRAWN, draw_objects
from mae.report.contact_sheet import as_rgb, shortened
from mae.report.image_files import names_below, output_names, require_new, write_png
from mae.report.notebook import shown
from mae.transfer.detector import require_torchvision
from mae.weights.given import Given

OVERLAYS, CROPS, PREDICTIONS = "overlays", "crops", "predictions.json"
MOST_IMAGES, LONGEST = 20, 48


class SearchedImage(NamedTuple):
    """An image in which objects were searched."""

    path: str
    overlay: str
    """File of the image with the boxes drawn over it."""
    objects: dict[str, int]
    """Number of objects of each class that it has, the most first."""


@shown
class DetectPrediction(NamedTuple):
    """What a detector finds in images."""

    images: tuple[SearchedImage, ...]
    objects: dict[str, int]
    """Number of objects of each class, the most first."""
    class_names: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    out: str
    """Folder of the files."""

    def values(self) -> dict[str, Any]:
        """Return the values to print with --json."""
        return self._asdict() | {"images": [image._asdict() for image in self.images]}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: images with their objects, then the classes."""
        for image in self.images[:MOST_IMAGES]:
            counts = (f"{count:,} {name}" for name, count in image.objects.items())
            yield shortened(image.path, LONGEST), ", ".join(counts) or "nothing"
        if (more := len(self.images) - MOST_IMAGES) > 0:
            yield (f"and {more:,} more in {PREDICTIONS}",)
        yield ("",)
        yield "images", f"{len(self.images):,}"
        for name, count in [*self.objects.items()][:MOST_IMAGES]:
            yield name, f"{count:,}"
        if self.unreadable:
            yield "unreadable", f"{len(self.unreadable):,}", some(self.unreadable, 3)
        yield "written", self.out


def detect_predict(
    weights: str | os.PathLike[str],
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path = Path("detections"),
    threshold: float = 0.5,
    crops: bool = False,
    device: str = "auto",
    quiet: bool = False,
    **given: Unpack[Given],
) -> DetectPrediction:
    """Detect objects in images.

    An image that cannot be read is named, and the others are searched.

    Args:
        weights: run, folder or file of `detect_train`.
        images: paths of image files, folders, packs and tar files.
        out: new folder for `overlays/` (PNG) and `predictions.json` (COCO's form).
        threshold: lowest score of the objects, 0 to 1.
        crops: whether to write each object, cut out, to `crops/CLASS/` (PNG).
        device: see `choose_device`.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    folder = Path(out)
    with Progress(quiet=quiet) as progress:
        require_torchvision()
        require_new(folder)
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: expected at least 0, at most 1, got {threshold}")
        model, view = open_for_detecting(weights, device=device, given=given, log=progress.note)
        config, names = model.encoder.config, model.class_names
        paths = [images] if isinstance(images, str | Path) else images
        source = open_inputs(paths, config, log=progress.note)
        reader, below = SourceReader(source), names_below(source)
        files = output_names(below)
        found, searched = list[tuple[int, str, DetectedObjects]](), list[SearchedImage]()
        for index, pixels in decoded_images(reader, config, progress=progress):
            objects = detected_objects(model, pixels, view, score=threshold)
            file, image = folder / OVERLAYS / files[index], as_rgb(pixels)
            write_png(file, _overlay(image, objects, names))
            if crops:
                _write_crops(folder / CROPS, files[index], image, objects, names)
            found.append((index, below[index], objects))
            counts = _counts([objects], names)
            searched.append(SearchedImage(source.name(index), str(file), counts))
        write_json_atomic(folder / PREDICTIONS, coco_results(found, names))
        return DetectPrediction(
            images=tuple(searched),
            objects=_counts([objects for *_, objects in found], names),
            class_names=names,
            unreadable=tuple(bad.name for bad in reader.bad),
            out=str(folder),
        )


def _overlay(image: Image.Image, objects: DetectedObjects, names: Sequence[str]) -> Image.Image:
    """Draw objects over an image with their classes and scores; small images are enlarged."""
    found, factor = objects.instances, max(1, DRAWN // max(image.size))
    large = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    pairs = zip(found.classes.tolist(), objects.scores.tolist(), strict=True)
    labels = [f"{names[k]} {score:.2f}" for k, score in pairs]
    return draw_objects(large, found, labels, classes=len(names))


def _write_crops(
    folder: Path, file: str, image: Image.Image, objects: DetectedObjects, names: Sequence[str]
) -> None:
    """Write the objects of an image, each into the folder of its class."""
    found = objects.instances
    for place, (box, k) in enumerate(
        zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    ):
        # A name of a class may be no name of a folder.
        own = folder / (re.sub(r"[^\w-]+", "_", names[k]) or "_")
        corners = *map(math.floor, box[:2]), *map(math.ceil, box[2:])
        write_png(own / f"{os.path.splitext(file)[0]}-{place}.png", image.crop(corners))


def _counts(found: Sequence[DetectedObjects], names: Sequence[str]) -> dict[str, int]:
    counts = Counter(names[k] for each in found for k in each.instances.classes.tolist())
    return dict(counts.most_common())
