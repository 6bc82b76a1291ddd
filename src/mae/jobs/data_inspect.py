"""Inspect a data set: statistics, broken images, and what pre-training would do with it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae.atomic import write_atomic
from mae.config.model import IMAGENET_MEAN, require
from mae.config.run import PretrainConfig
from mae.data.audit.boxes import BoxReport, box_report
from mae.data.audit.quarantine import Moved, require_place, set_aside
from mae.data.audit.report import DatasetReport
from mae.data.sources.open import Data, data_name, open_source
from mae.data.sources.source import FolderSource, Source, notes_of
from mae.errors import ConfigError, DataError, MaeError
from mae.evaluation.labelled_data import Labelled, labelled
from mae.planning.estimate import LEARNT_STEPS, Estimate
from mae.planning.hardware import cores, this_machine
from mae.progress import Progress, hours_in_words
from mae.recipes.catalogue import find_config
from mae.recipes.custom import kept_fields
from mae.report.contact_sheet import contact_sheet, thumbnail
from mae.report.dataset import Section, box_section, dataset_page, sections_of
from mae.report.figures import png_bytes
from mae.report.reconstruction import evenly
from mae.report.tables import WIDTH, wrapped
from mae.train.choice import choose_config
from mae.train.measure import with_measured_rate
from mae.train.resolve import ResolvedRun, resolve

MOST_SHOWN = 48
"""Number of images on the contact sheet."""

_NAME = 26  # width of the first column, in characters


class Inspected(NamedTuple):
    """Result of an inspection."""

    name: str
    found: DatasetReport
    labels: Labelled | str
    """Training and test part for commands that need labels; or why they would refuse the data."""
    boxes: BoxReport | str | None
    """Boxes of objects, or why they cannot be used; None without any."""
    looked_at: int
    estimate: Estimate | None
    """Estimate for the recipe; None where it refuses the data."""
    notes: Sequence[str]
    """Notes that pre-training would print at its start; without an estimate, why it refuses."""
    max_bad: float
    """Largest fraction of unusable images that the recipe tolerates."""
    moved: Moved | None
    """Which broken files were moved; None unless that was asked for."""
    out: Path | None

    def sections(self) -> Iterator[Section]:
        """Return the sections of the report, in order."""
        images, *others = sections_of(self.found, looked_at=self.looked_at)
        yield images
        notes = [self.labels] if isinstance(self.labels, str) else self.labels.notes
        names = ["found", *["note"] * (len(notes) - 1)]
        yield Section("labels", list(zip(names, notes, strict=True)))
        if self.boxes is not None:
            yield box_section(self.boxes)
        if read := [note for note in notes_of(self.found.source) if note not in notes]:
            yield Section("how it was read", [("note", note) for note in read])
        yield from others
        yield Section("what mae pretrain would do", list(self._pretrain_rows()))
        if self.moved is not None:
            moved = [("moved", name) for name in self.moved.moved]
            left = [("left", f"{name}: {why}") for name, why in self.moved.left.items()]
            yield Section("set aside", moved + left or [("moved", "nothing")])

    def _pretrain_rows(self) -> Iterator[tuple[str, str]]:
        """Yield what pre-training would do, or why it refuses the data."""
        unusable, most = len(self.found.faults) / self.looked_at, self.max_bad
        if unusable > most:
            limit = f"{unusable:.0%} cannot be used, more than --max-bad {most:g}"
            yield "stop", f"{limit}: mend them, move them with --quarantine, or raise it"
        if self.estimate is None:
            yield from (("refused", reason) for reason in self.notes)
            return
        config, model = self.estimate.config, self.estimate.config.model
        (H, W), (low, high) = model.image_size, config.augment.crop_scale
        usual, dtype = model.pixels.mean == IMAGENET_MEAN, model.pixels.dtype
        scaling = "ImageNet's" if usual else "measured"
        yield "pixels", f"{model.channels} x {dtype}; {scaling} mean and std"
        if usual and dtype == "float32":
            yield "", "ImageNet's fit values from 0 to 1; for others use --measure-pixels"
        yield "crops", f"{low:.0%} to {high:.0%} of the area of each image, as {H} x {W}"
        h, w = np.median(self.found.sizes, axis=0).astype(int).tolist()
        if h * w < H * W:
            p = model.patch_size
            smaller = " ".join(str(max(2, edge // p) * p) for edge in (h, w))
            yield "", f"the median is {h} x {w}: --image-size {smaller} enlarges fewer"
        yield from (("", note) for note in self.notes)
        steps = self.estimate.steps
        whole = "" if steps is None else f", {steps:,} in all"
        yield "steps", f"{self.estimate.steps_per_epoch:,} an epoch{whole}"
        yield "epochs", _epochs_in_words(self.estimate)
        shown = ("micro-batch", "batch", "memory", "rate", "time")
        yield from ((name, text) for name, text, _ in self.estimate.rows() if name in shown)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table."""
        for section in self.sections():
            yield (section.title,)
            for cells in section.rows:
                yield from ((f"  {a}", b) for a, b in wrapped(cells, (_NAME, WIDTH - _NAME - 4)))
            yield ("",)
        if self.out is not None:
            yield "written", str(self.out)

    def values(self) -> dict[str, Any]:
        """Return all results for --json, with every name."""
        found, names = self.found, self.found.names
        sizes = np.array(found.sizes).reshape(-1, 2)
        labels = None if isinstance(self.labels, str) else self.labels
        extremes = [] if not found.ids else [f(sizes, axis=0) for f in (np.min, np.median, np.max)]
        sums = found.sums if found.ids else None
        return {
            "data": self.name,
            "count": len(found.source),
            "looked_at": self.looked_at,
            "readable": len(found.ids),
            "bytes": found.bytes,
            "classes": list(() if labels is None else labels.train.source.class_names),
            "labelled": None if labels is None else labels.values(),
            "boxes": self.boxes.values() if isinstance(self.boxes, BoxReport) else self.boxes,
            "formats": dict(found.formats),
            "stored_as": [{**k._asdict(), "count": n} for k, n in found.kinds.items()],
            "not_read": dict(found.left_out),
            "notes": list(notes_of(found.source)),
            "heights": [int(size[0]) for size in extremes],  # min, median, max
            "widths": [int(size[1]) for size in extremes],
            "mean": None if sums is None else sums.mean,
            "std": None if sums is None else sums.std,
            "copies": [[names[place] for place in group] for group in found.copies()],
            "look_alikes": [[names[place] for place in group] for group in found.look_alikes()],
            "nearly_constant": [names[place] for place in found.nearly_constant()],
            "broken": {fault.name: fault.reason for fault in found.faults if fault.broken},
            "unfit": {fault.name: fault.reason for fault in found.faults if not fault.broken},
            "read_with_a_warning": {fault.name: fault.reason for fault in found.warnings},
            "pretrain": None if self.estimate is None else self._pretrain_values(self.estimate),
            "refused": list(self.notes) if self.estimate is None else [],
            "moved": None if self.moved is None else self.moved._asdict(),
            "out": self.out,
        }

    def _pretrain_values(self, estimate: Estimate) -> dict[str, Any]:
        config, kind = estimate.config, self.found.kind
        return {
            "kind": None if kind is None else kind._asdict(),
            "mean": config.model.pixels.mean,
            "std": config.model.pixels.std,
            "image_size": config.model.image_size,
            "patch_size": config.model.patch_size,
            "crop_scale": config.augment.crop_scale,
            "steps_per_epoch": estimate.steps_per_epoch,
            "epochs": config.epochs,
            "sensible_epochs": estimate.sensible_epochs,
            **estimate.values(),
        }


def _epochs_in_words(estimate: Estimate) -> str:
    """Compare the steps of the run with those in which the demo learnt."""
    epochs, enough = round(estimate.config.epochs), estimate.sensible_epochs
    demo = f"the {LEARNT_STEPS:,} steps in which the demo learnt"
    if enough <= epochs:
        return f"{epochs:,} make at least {demo}"
    hours = estimate.hours * enough / epochs
    takes = "" if math.isnan(hours) else f" (about {hours_in_words(hours)})"
    if enough * estimate.steps_per_epoch >= LEARNT_STEPS:
        return f"{epochs:,} make fewer than {demo}: use --epochs {enough}{takes}"
    few = f"few images: even {enough:,} epochs{takes}, the longest of the paper, make fewer than"
    return f"{few} {demo}; use a smaller --batch, or --init"


def inspect_data(
    data: Data,
    *,
    limit: int | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    recipe: str | PretrainConfig = "folder",
    quiet: bool = False,
) -> Inspected:
    """Read and decode every image as a run would, and collect statistics.

    Nothing is changed, except that `quarantine` moves broken files.

    Args:
        data: what `pretrain` takes.
        limit: number of images to inspect, evenly spread; none: all.
        out: .html for the whole report, .png for a contact sheet.
        quarantine: folder to move the broken files to; only for data that are a folder.
        recipe: recipe to estimate on the data.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    suffix = None if out is None else out.suffix
    require(suffix in (None, ".html", ".png"), "out", str(out), "a name ending in .html or .png")
    require(limit is None or limit >= 1, "limit", limit, "at least 1")
    config = find_config(recipe, PretrainConfig) if isinstance(recipe, str) else recipe
    source, root = open_source(data), None
    if quarantine is not None:
        root = _folder_of(data, source)
        require_place(root, quarantine)
    count, estimate = len(source), None
    with Progress(quiet=quiet) as progress:
        resolved, notes = _resolved(config, source, kept=kept_fields(recipe, {}))
        found = DatasetReport(source=source, kind=None if resolved is None else resolved.kind)
        most = min(limit or count, count)
        ids = [place * count // most for place in range(most)]
        shown = set(evenly(ids, MOST_SHOWN)) if out is not None else set()
        thumbnails: list[tuple[str, Image.Image]] = []
        progress.start(most, label="image")
        for done, index in enumerate(ids, start=1):
            pixels = found.add(index)
            if pixels is not None and index in shown:
                thumbnails.append((source.name(index), thumbnail(pixels)))
            progress.update(done)
        if resolved is not None and found.ids:
            estimate = Estimate.of_run(resolved.config, this_machine(config.device), count)
            estimate = with_measured_rate(estimate, source, resolved.kind, log=progress.note)
        path = data if isinstance(data, str | Path) else None
        boxes = None if path is None else box_report(path, progress=progress, threads=cores())
    moved = None
    if quarantine is not None and root is not None and isinstance(source, FolderSource):
        broken = [source.path(fault.id) for fault in found.faults if fault.broken]
        moved = set_aside(root, [os.path.relpath(path, root) for path in broken], quarantine)
    if not found.ids:
        notes = notes or [f"none of {most:,} can be read"]
    result = Inspected(
        data_name(data),
        found,
        _labels(data),
        boxes,
        most,
        estimate,
        notes,
        config.max_bad,
        moved,
        out,
    )
    if out is not None:
        _write(out, result, thumbnails)
    return result


def _resolved(
    config: PretrainConfig, source: Source, *, kept: frozenset[str] | None
) -> tuple[ResolvedRun[PretrainConfig] | None, list[str]]:
    """Resolve the run and return its notes; None, with the reason, where it refuses the images."""
    notes: list[str] = []
    try:
        config = choose_config(config, source, kept=kept, log=notes.append)
        resolved = resolve(config, source)
    except MaeError as error:
        return None, [str(error)]
    return resolved, [*notes, *resolved.notes]


def _labels(data: Data) -> Labelled | str:
    if not isinstance(data, str | Path):
        return "none are looked for in arrays and sources"
    try:
        return labelled(data, seed=0)
    except DataError as error:
        return f"none found; {str(error).removeprefix('data: ')}"


def _folder_of(data: Data, source: Source) -> Path:
    folder = Path(data).expanduser() if isinstance(data, str | Path) else None
    if folder is None or not folder.is_dir() or not isinstance(source, FolderSource):
        raise ConfigError("quarantine: moves image files of a folder, got other data; drop it")
    return folder


def _write(out: Path, result: Inspected, thumbnails: Sequence[tuple[str, Image.Image]]) -> None:
    sheet = contact_sheet(thumbnails) if thumbnails else None
    if out.suffix == ".html":
        write_atomic(out, dataset_page(f"Images of {result.name}", sheet, result.sections()))
    elif sheet is not None:
        write_atomic(out, png_bytes(sheet))
    else:
        raise ConfigError(f"out: none of {result.looked_at} images can be drawn; run without --out")
