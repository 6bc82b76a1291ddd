"""Count the boxes of annotated images, for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mae.data.detection.check import SIZES, check
from mae.data.detection.layout import boxed_layout
from mae.data.types import Integers
from mae.errors import DataError
from mae.progress import Progress


class BoxReport(NamedTuple):
    """The boxes of a data set."""

    images: dict[str, int]
    """Number of usable images by split; of undivided data, by an empty name."""
    classes: tuple[str, ...]
    counts: Integers
    """K 3: small, medium and large boxes of each class (COCO's areas), crowds left out."""
    has_masks: bool
    notes: tuple[str, ...]
    """Guesses, and what cannot be used."""

    def values(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        counts = {
            name: dict(zip(SIZES, row, strict=True))
            for name, row in zip(self.classes, self.counts.tolist(), strict=True)
        }
        names = ("images", "has_masks", "notes")
        return {"classes": counts} | {name: getattr(self, name) for name in names}


def box_report(data: str | Path, *, progress: Progress, threads: int = 1) -> BoxReport | str | None:
    """Read all boxes of a folder.

    Args:
        data: see `find_boxed`.
        progress: shows the images checked.
        threads: see `check`.

    Returns:
        None where there are no files of boxes; the reason where they cannot be used.
    """
    root = Path(data).expanduser()
    try:
        layout = boxed_layout(root) if root.is_dir() else None
        if layout is None:
            return None
        kinds = sorted(layout.splits, key=("train", "val", "test").index)
        openers = [layout.splits[k] for k in kinds] if layout.whole is None else [layout.whole]
        parts = [opener() for opener in openers]
        found = check(parts, max_bad=1, progress=progress, threads=threads)
    except DataError as error:
        return str(error).removeprefix("data: ")
    images = {part.name: len(own.ids) for part, own in zip(parts, found.parts, strict=True)}
    counts = sum((own.counts for own in found.parts[1:]), found.parts[0].counts)
    return BoxReport(images, found.classes, counts, found.has_masks, found.notes)
