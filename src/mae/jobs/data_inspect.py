"""Inspect a data set: statistics, broken images, and what pre-training would do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae.atomic import write_atomic
from mae.config.run import PretrainConfig
from mae.data.audit.quarantine import Moved, require_place, set_aside
from mae.data.audit.report import DatasetReport, Fault
from mae.data.sources.open import Data, data_name, open_source
from mae.data.sources.source import FolderSource, notes_of
from mae.errors import ConfigError, DataError
from mae.evaluation.labelled_data import Labelled, labelled
from mae.progress import Progress
from mae.recipes.catalogue import find_config
from mae.report.contact_sheet import contact_sheet, thumbnail
from mae.report.dataset import Section, dataset_page, sections_of
from mae.report.figures import png_bytes
from mae.report.reconstruction import evenly
from mae.report.tables import WIDTH, wrapped
from mae.train.outlook import Outlook, look_ahead, settle

MOST_SHOWN = 48
"""Number of images on the contact sheet."""

_NAME = 26  # width of the first column, in characters


class Inspected(NamedTuple):
    """Result of an inspection."""

    name: str
    found: DatasetReport
    labels: Labelled | str
    """Training and test part for commands that need labels; or why they would refuse the data."""
    looked_at: int
    outlook: Outlook | None
    """What the recipe would do; None where it refuses the data."""
    refusal: Sequence[str]
    """Why the recipe refuses the data."""
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
        if read := [note for note in notes_of(self.found.source) if note not in notes]:
            yield Section("how it was read", [("note", note) for note in read])
        yield from others
        refused = [("refused", reason) for reason in self.refusal]
        median = None
        if self.found.ids:
            height, width = np.median(self.found.sizes, axis=0)
            median = int(height), int(width)
        rows = refused if self.outlook is None else list(self.outlook.rows(median))
        share, most = len(self.found.faults) / self.looked_at, self.max_bad
        if share > most:
            rows.insert(0, ("stop", f"{share:.0%} cannot be used, more than the {most:.0%} a run "
                            "bears: mend them, set the broken ones aside with --quarantine, or "
                            "raise --max-bad"))  # fmt: skip
        yield Section("what mae pretrain would do", rows)
        if self.moved is not None:
            moved = [("moved", name) for name in self.moved.moved]
            left = [("left", f"{name}: {why}") for name, why in self.moved.left.items()]
            yield Section("set aside", moved + left or [("moved", "nothing")])

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the rows of a table."""
        for section in self.sections():
            yield (section.title,)
            for name, text in section.rows:
                cells = (name, text)
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
        return {
            "data": self.name,
            "count": len(found.source),
            "looked_at": self.looked_at,
            "readable": len(found.ids),
            "bytes": found.bytes,
            "classes": list(() if labels is None else labels.train.source.class_names),
            "labelled": None if labels is None else labels.values(),
            "formats": dict(found.formats),
            "stored_as": [{**k._asdict(), "count": n} for k, n in found.kinds.items()],
            "not_read": dict(found.left_out),
            "notes": list(notes_of(found.source)),
            "heights": [int(size[0]) for size in extremes],  # min, median, max
            "widths": [int(size[1]) for size in extremes],
            "mean": None if found.sums is None or not found.ids else found.sums.mean,
            "std": None if found.sums is None or not found.ids else found.sums.std,
            "copies": [[names[place] for place in group] for group in found.copies()],
            "look_alikes": [[names[place] for place in group] for group in found.look_alikes()],
            "nearly_constant": [names[place] for place in found.nearly_constant()],
            "broken": _named(fault for fault in found.faults if fault.broken),
            "unfit": _named(fault for fault in found.faults if not fault.broken),
            "read_with_a_warning": _named(iter(found.warnings)),
            "pretrain": None if self.outlook is None else self.outlook.values(),
            "refused": list(self.refusal),
            "moved": None if self.moved is None else self.moved._asdict(),
            "out": self.out,
        }


def _named(faults: Iterator[Fault]) -> dict[str, str]:
    return {fault.name: fault.reason for fault in faults}


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
        recipe: recipe whose outlook on the data is reported.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    if out is not None and out.suffix not in (".html", ".png"):
        raise ConfigError(f"out: expected a name ending in .html or .png, got {out}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: expected at least 1, got {limit}")
    config = find_config(recipe, PretrainConfig) if isinstance(recipe, str) else recipe
    source, root = open_source(data), None
    if quarantine is not None:
        root = _folder_of(data)
        require_place(root, quarantine)
    with Progress(quiet=quiet) as progress:
        settled, notes = settle(config, source)
        found = DatasetReport(source=source, kind=None if settled is None else settled[1])
        ids = _sample(len(source), limit)
        shown = set(evenly(ids, MOST_SHOWN)) if out is not None else set()
        thumbnails: list[tuple[str, Image.Image]] = []
        progress.start(len(ids), label="picture")
        for done, index in enumerate(ids, start=1):
            pixels = found.add(index)
            if pixels is not None and index in shown:
                thumbnails.append((source.name(index), thumbnail(pixels)))
            progress.update(done)
        outlook = None
        if settled is not None and found.ids:
            outlook = look_ahead(*settled, source, notes=notes, say=progress.note)
    moved = None
    if quarantine is not None and root is not None and isinstance(source, FolderSource):
        broken = [source.path(fault.id) for fault in found.faults if fault.broken]
        moved = set_aside(root, [os.path.relpath(path, root) for path in broken], quarantine)
    name = data_name(data)
    refusal = [] if outlook is not None else notes or [f"none of {len(ids):,} can be read"]
    labels = _labels(data)
    result = Inspected(name, found, labels, len(ids), outlook, refusal, config.max_bad, moved, out)
    if out is not None:
        _write(out, result, thumbnails)
    return result


def _labels(data: Data) -> Labelled | str:
    if not isinstance(data, str | Path):
        return "none are looked for in arrays and sources"
    try:
        return labelled(data, seed=0)
    except DataError as error:
        return f"none: {error}"


def _folder_of(data: Data) -> Path:
    folder = Path(data).expanduser() if isinstance(data, str | Path) else None
    if folder is None or not folder.is_dir():
        raise ConfigError("quarantine: has no effect on what is no folder of files; drop it")
    return folder


def _sample(count: int, limit: int | None) -> Sequence[int]:
    if limit is None or limit >= count:
        return range(count)
    return [place * count // limit for place in range(limit)]


def _write(out: Path, result: Inspected, thumbnails: Sequence[tuple[str, Image.Image]]) -> None:
    sheet = contact_sheet(thumbnails) if thumbnails else None
    if out.suffix == ".html":
        write_atomic(out, dataset_page(f"Pictures of {result.name}", sheet, result.sections()))
    elif sheet is not None:
        write_atomic(out, png_bytes(sheet))
    else:
        raise ConfigError(f"out: none of {result.looked_at} pictures can be drawn; see without it")
