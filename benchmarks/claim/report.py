"""Ratios of the pairings, as a table and as JSON."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.claim.measuring import Measured
from benchmarks.claim.sides import PAIRINGS, SIDES, count_flops
from benchmarks.spread import spread
from mae.config.sizes import model_config

# Source: paper, Table 2, hours of ViT with mask tokens over hours without.
PAPER = {
    ("vit-l/16", 8, 8): 2.8, ("vit-l/16", 8, 1): 3.7,
    ("vit-h/14", 8, 8): 3.5, ("vit-h/14", 8, 1): 4.1,
}  # fmt: skip


class Row(NamedTuple):
    """A pairing of a size: what the encoder with mask tokens takes over what ours takes."""

    model: str
    their_depth: int
    our_depth: int
    flops: float
    paper: float | None
    """Hours over hours, on TPUs."""
    batch: int | None = None
    time: tuple[float, ...] = ()
    """Of whole steps, pair by pair."""
    without_update: tuple[float, ...] = ()
    our_seconds: float | None = None
    """Median of a whole step."""
    saved: tuple[float, float] | None = None
    """Bytes of an image kept for the backward, theirs and ours."""
    peak: tuple[int, int] | None = None
    """Bytes of a process, theirs and ours."""

    def cells(self) -> tuple[str, ...]:
        """Give the row of the table."""
        return (
            self.model,
            f"{self.their_depth} and {self.our_depth}",
            f"{self.flops:.2f}",
            spread(self.time),
            spread(self.without_update),
            "" if self.paper is None else str(self.paper),
            "" if self.saved is None else _ratio(*self.saved, unit=1e6, name="MB"),
            "" if self.peak is None else _ratio(*self.peak, unit=1e9, name="GB"),
        )


HEAD = ("model", "decoder blocks, theirs and ours", "operations", "time of a step",
        "without the update", "paper (TPU)", "kept for the backward, an image",
        "memory of the process")  # fmt: skip


def rows_of(model: str, measured: Measured | None) -> list[Row]:
    """Pair the sides of a size."""
    config = model_config(model)
    flops = {side: count_flops(config, side) for side in SIDES}
    rows = []
    for theirs, ours in PAIRINGS:
        depths = (theirs.decoder_depth, ours.decoder_depth)
        row = Row(model, *depths, flops[theirs] / flops[ours], PAPER.get((model, *depths)))
        if measured is not None:
            pairs = list(zip(measured.seconds[theirs], measured.seconds[ours], strict=True))
            row = row._replace(
                batch=measured.batch,
                time=tuple(their[0] / own[0] for their, own in pairs),
                without_update=tuple(their[1] / own[1] for their, own in pairs),
                our_seconds=statistics.median(own[0] for _, own in pairs),
                saved=(measured.saved_bytes[theirs], measured.saved_bytes[ours]),
                peak=(measured.peak_bytes[theirs], measured.peak_bytes[ours]),
            )
        rows.append(row)
    return rows


def _ratio(theirs: float, ours: float, *, unit: float, name: str) -> str:
    return f"{theirs / ours:.2f} ({theirs / unit:.3g} and {ours / unit:.3g} {name})"


def machine(device: torch.device) -> dict[str, Any]:
    """Say where it was measured."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    threads = torch.get_num_threads()
    return {"cores": os.cpu_count(), "threads": threads, "torch": torch.__version__, "card": card}


def page(rows: Sequence[Row], device: torch.device) -> str:
    """Give Markdown."""
    pairs = {row.model: (row.batch, len(row.time)) for row in rows if row.batch is not None}
    at = [f"{model}: batch {batch}, {count} pairs" for model, (batch, count) in pairs.items()]
    m = machine(device)
    where = (
        f"{m['cores']} cores, {m['threads']} threads, torch {m['torch']}, {m['card'] or 'no GPU'}"
    )
    lines = [
        f"`python -m benchmarks.claim` ({'; '.join([*at, where])}). Whole steps in float32, the "
        "same images and masks; what the encoder with mask tokens takes over what ours takes, "
        "medians (quartiles).",
        "",
    ]
    cells = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def values(rows: Sequence[Row], device: torch.device) -> dict[str, Any]:
    """Give everything for machines."""
    return machine(device) | {"rows": [row._asdict() for row in rows]}
