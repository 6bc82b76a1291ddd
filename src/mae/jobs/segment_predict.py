"""Segment images without masks: overlays, masks of classes, and the area of each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
from PIL import Image

from mae.atomic import write_atomic, write_json_atomic
from mae.data.annotated import CLASSES
from mae.data.batching.batch import SourceReader
from mae.data.decoding.decode import decode
from mae.data.decoding.header import kind_of
from mae.data.segmentation.layout import MASKS
from mae.data.sources.images import open_inputs
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.evaluation.discover import some
from mae.evaluation.inputs import report_unreadable
from mae.evaluation.segment import open_for_segmenting, segmented_mask
from mae.progress import Progress
from mae.report.contact_sheet import shortened
from mae.report.figures import png_bytes
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
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"out: {folder} exists already; choose another, or remove it first")
        model, view = open_for_segmenting(weights, device=device, given=given, log=progress.note)
        config, names = model.encoder.config, model.class_names
        paths = [images] if isinstance(images, str | Path) else images
        source = open_inputs(paths, config, log=progress.note)
        reader, use = SourceReader(source), partial(decode, kind=kind_of(config))
        files, found, totals = output_names(source), list[SegmentedImage](), np.zeros(len(names))
        progress.start(len(source), label="image")
        for index in range(len(source)):
            if (pixels := reader.read(index, use)) is not None:
                mask = segmented_mask(model, pixels, view)
                mask_file, overlay_file = (folder / part / files[index] for part in PARTS)
                _write_png(mask_file, indexed_png(mask, classes=len(names)))
                _write_png(overlay_file, overlay(pixels, mask, classes=len(names)))
                counts = np.bincount(mask.ravel(), minlength=len(names))
                totals += counts
                own, name = _areas(counts, names), source.name(index)
                found.append(SegmentedImage(name, str(mask_file), str(overlay_file), own))
            progress.update(index + 1)
        report_unreadable(len(source), reader.bad, reader.warned, log=progress.note)
        unreadable = tuple(bad.name for bad in reader.bad)
        areas = _areas(totals, names)
        result = SegmentPrediction(tuple(found), areas, names, unreadable, str(folder))
        write_atomic(folder / CLASSES, ("\n".join(names) + "\n").encode())
        write_json_atomic(folder / SUMMARY, result.values())
        return result


def _write_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png_bytes(image))


def _areas(counts: Any, names: tuple[str, ...]) -> dict[str, float]:
    total = max(1, counts.sum())
    order = np.argsort(-counts, kind="stable").tolist()
    return {names[k]: float(counts[k] / total) for k in order if counts[k]}


def output_names(source: Source) -> list[str]:
    """Return the path of the PNG of each image below a folder, each once.

    It is that of the image below the folder that all of them have in common; where two images
    differ in their extensions alone, the second keeps its own before `.png`.
    """
    names = [source.name(i) for i in range(len(source))]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])
    found, taken = list[str](), set[str]()
    for name in names:
        path = os.path.relpath(os.path.abspath(name), root)
        short = os.path.splitext(path)[0]
        while short in taken:
            path, short = f"{path}_", path
        taken.add(short)
        found.append(f"{short}.png")
    return found
