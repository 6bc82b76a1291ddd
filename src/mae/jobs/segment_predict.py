"""Segment images without masks: overlays, masks of classes, and the area of each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np

from mae.atomic import write_atomic, write_json_atomic
from mae.data.annotated import CLASSES
from mae.data.batching.batch import SourceReader
from mae.data.segmentation.layout import MASKS
from mae.data.sources.images import open_inputs
from mae.evaluation.dense.segment import open_for_segmenting, segmented_mask
from mae.evaluation.discover import some
from mae.evaluation.inputs import decoded_images
from mae.progress import Progress
from mae.report.contact_sheet import shortened
from mae.report.image_files import names_below, output_names, require_new, write_png
from mae.report.notebook import shown
from mae.report.segments import indexed_png, overlay
from mae.weights.given import Given

PARTS, SUMMARY = (MASKS[0], "overlays"), "summary.json"
MOST_CLASSES, LONGEST = 20, 48


class SegmentedImage(NamedTuple):
    """A segmented image."""

    path: str
    mask: str
    """File of the mask, whose values are the classes."""
    overlay: str
    """File of the image with the colours of the classes."""
    areas: dict[str, float]
    """Fraction of its pixels of each class that it has, the largest first."""


@shown
class SegmentPrediction(NamedTuple):
    """What a segmenter finds in images."""

    images: tuple[SegmentedImage, ...]
    areas: dict[str, float]
    """Fraction of all pixels of each class, the largest first."""
    class_names: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Names of the images left out."""
    out: str
    """Folder of the files."""

    def values(self) -> dict[str, Any]:
        """Return the values to print with --json, which summary.json has as well."""
        images = [image._asdict() for image in self.images]
        return self._asdict() | {"images": images}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: images with their largest class, then the classes."""
        for image in self.images[:MOST_CLASSES]:
            name, area = next(iter(image.areas.items()))
            yield shortened(image.path, LONGEST), name, f"{area:.1%}"
        if (more := len(self.images) - MOST_CLASSES) > 0:
            yield (f"and {more:,} more in {SUMMARY}",)
        yield ("",)
        yield "images", f"{len(self.images):,}"
        for name, area in [*self.areas.items()][:MOST_CLASSES]:
            yield name, f"{area:.2%}", "of the pixels"
        if self.unreadable:
            yield "unreadable", f"{len(self.unreadable):,}", some(self.unreadable, 3)
        yield "written", self.out


def segment_predict(
    weights: str | os.PathLike[str],
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path = Path("segments"),
    device: str = "auto",
    quiet: bool = False,
    **given: Unpack[Given],
) -> SegmentPrediction:
    """Segment images at their own size.

    An image that cannot be read is named, and the others are segmented.

    Args:
        weights: run, folder or file of `segment_train`.
        images: paths of image files, folders, packs and tar files.
        out: new folder for `masks/` (PNG, whose values are the classes of `classes.txt`),
            `overlays/` (PNG) and `summary.json` (area of each class).
        device: see `choose_device`.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    folder = Path(out)
    with Progress(quiet=quiet) as progress:
        require_new(folder)
        model, view = open_for_segmenting(weights, device=device, given=given, log=progress.note)
        config, names = model.encoder.config, model.class_names
        paths = [images] if isinstance(images, str | Path) else images
        source = open_inputs(paths, config, log=progress.note)
        reader, files = SourceReader(source), output_names(names_below(source))
        found, totals = list[SegmentedImage](), np.zeros(len(names))
        for index, pixels in decoded_images(reader, config, progress=progress):
            mask = segmented_mask(model, pixels, view)
            mask_file, overlay_file = (folder / part / files[index] for part in PARTS)
            write_png(mask_file, indexed_png(mask, classes=len(names)))
            write_png(overlay_file, overlay(pixels, mask, classes=len(names)))
            counts = np.bincount(mask.ravel(), minlength=len(names))
            totals += counts
            own, name = _areas(counts, names), source.name(index)
            found.append(SegmentedImage(name, str(mask_file), str(overlay_file), own))
        unreadable = tuple(bad.name for bad in reader.bad)
        areas = _areas(totals, names)
        result = SegmentPrediction(tuple(found), areas, names, unreadable, str(folder))
        write_atomic(folder / CLASSES, ("\n".join(names) + "\n").encode())
        write_json_atomic(folder / SUMMARY, result.values())
        return result


def _areas(counts: Any, names: tuple[str, ...]) -> dict[str, float]:
    total = max(1, counts.sum())
    order = np.argsort(-counts, kind="stable").tolist()
    return {names[k]: float(counts[k] / total) for k in order if counts[k]}
