"""The dated report of a card, as a page and as JSON."""

from __future__ import annotations

import statistics
import subprocess
from typing import Any, NamedTuple

import torch

from benchmarks.spread import spread
from mae.planning.hardware import cores

UNKNOWN = "unknown"


class Machine(NamedTuple):
    """Where it was measured."""

    card: str
    memory_bytes: int
    driver: str
    torch: str
    cuda: str
    transformers: str
    cores: int


class SideRow(NamedTuple):
    """The step of one side at a size; what was not measured is None, and the note says why."""

    model: str
    precision: str
    side: str
    batch: int | None = None
    seconds: tuple[float, ...] = ()
    """Of a step, round by round."""
    share: float | None = None
    """Of the card's peak, by the operations of the published step; None for an unknown card."""
    peak_bytes: int | None = None
    ratios: tuple[float, ...] = ()
    """Time of this step over that of the part's first side, round by round."""
    note: str = ""

    @property
    def images_per_second(self) -> float | None:
        """The batch over the median time of a step."""
        if self.batch is None or not self.seconds:
            return None
        return self.batch / statistics.median(self.seconds)


class LoaderRow(NamedTuple):
    """ViT-B's step fed from a pack of JPEGs, in images a second."""

    batch: int
    workers: int
    cores: int
    alone: float
    """The step on a batch that lies on the card."""
    fed: float


class Report(NamedTuple):
    """All figures of a run so far."""

    date: str
    machine: Machine
    peak_known: bool
    tests: str = "not run"
    steps: tuple[SideRow, ...] = ()
    loader: LoaderRow | None = None
    left_out: tuple[str, ...] = ()

    def without(self, what: str, why: str) -> Report:
        """Return the report with a part that was not measured, and why."""
        return self._replace(left_out=(*self.left_out, f"{what} ({why})"))

    def values(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        own = self._asdict()
        steps = [r._asdict() | {"images_per_second": r.images_per_second} for r in self.steps]
        loader = None if self.loader is None else self.loader._asdict()
        return own | {"machine": self.machine._asdict(), "steps": steps, "loader": loader}

    def page(self) -> str:
        """Return the report as Markdown."""
        m = self.machine
        lines = [
            f"# {m.card}, {self.date}",
            "",
            f"`make gpu` on {m.card} ({m.memory_bytes / 2**30:.0f} GiB), driver {m.driver}, "
            f"torch {m.torch} (CUDA {m.cuda}), transformers {m.transformers}, {m.cores} cores.",
            "",
            f"Tests on the card: {self.tests}.",
            "",
            "## The step",
            "",
            "Images a second of whole optimiser steps on uint8 images of 224 x 224 that lie on the "
            "card; all sides of a size in one process, in turn, at the same batch, with the sides "
            "of one size on the card at a time. `mae` is what "
            "`mae pretrain` does on a GPU (the loss compiled as one graph); `blocks compiled` "
            "compiles each transformer block; the CUDA graph is a trial, not in `mae`. Peers: "
            "autocast, fused AdamW, no finite check. `time over` is a side's step over that of "
            "the first row of its size, median (quartiles) of the rounds. Share of the peak: "
            "operations of the published step over the data sheet's dense peak.",
        ]
        if not self.peak_known:
            lines.append("The peak of this card is not known here, so its share is left out.")
        lines += ["", *_table(STEP_HEAD, [_step_cells(row) for row in self.steps]), ""]
        lines += [
            "## Loader and step",
            "",
            self._loader_line(),
        ]
        if self.left_out:
            lines += ["", "Not measured: " + ", ".join(self.left_out) + "."]
        return "\n".join(lines) + "\n"

    def _loader_line(self) -> str:
        if self.loader is None:
            return "Not measured yet or left out."
        row = self.loader
        return (
            f"ViT-B/16, blocks compiled, batch {row.batch}, a pack of drawn JPEGs re-encoded to a "
            f"short side of 256 (cached by the system), {row.workers} readers on {row.cores} "
            f"cores: {row.fed:,.0f} images/s, "
            f"{row.fed / row.alone:.0%} of the step alone ({row.alone:,.0f})."
        )


STEP_HEAD = ("model", "precision", "side", "batch", "images/s", "of the peak", "peak memory",
             "time over", "rounds", "note")  # fmt: skip


def _step_cells(row: SideRow) -> tuple[str, ...]:
    return (
        row.model,
        row.precision,
        row.side,
        _number(row.batch),
        _number(row.images_per_second),
        "" if row.share is None else f"{row.share:.0%}",
        _gb(row.peak_bytes),
        spread(row.ratios),
        str(len(row.seconds)),
        row.note,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _gb(value: int | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def this_machine() -> Machine:
    """Describe the machine by torch and the driver."""
    import transformers

    found = torch.cuda.get_device_properties(0)
    return Machine(
        card=found.name,
        memory_bytes=found.total_memory,
        driver=_driver(),
        torch=torch.__version__,
        cuda=torch.version.cuda or UNKNOWN,
        transformers=transformers.__version__,
        cores=cores(),
    )


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return said.stdout.partition("\n")[0].strip() or UNKNOWN
