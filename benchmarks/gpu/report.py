"""The dated report of a card, as a page and as JSON."""

from __future__ import annotations

import subprocess
from typing import Any, NamedTuple

import torch

from benchmarks.spread import spread
from mae.jobs.setup import cores

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


class StepRow(NamedTuple):
    """A model's step; what was not measured is None, and the note says why."""

    model: str
    precision: str
    batch: int | None = None
    images_per_second: float | None = None
    share: float | None = None
    """Of the card's peak, by the operations of the published step; None for an unknown card."""
    peak_bytes: int | None = None
    weight_bytes: int = 0
    gradient_bytes: int = 0
    moment_bytes: int = 0
    paired_batch: int | None = None
    ratios: tuple[float, ...] = ()
    """Time of transformers' step over ours, pair by pair."""
    their_peak_bytes: int | None = None
    """At the batch of the pairs."""
    note: str = ""

    @property
    def bytes_per_image(self) -> float | None:
        """What each picture of a batch adds at the peak."""
        if self.batch is None or self.peak_bytes is None:
            return None
        kept = self.weight_bytes + self.gradient_bytes + self.moment_bytes
        return (self.peak_bytes - kept) / self.batch


class LoaderRow(NamedTuple):
    """ViT-B's step fed from JPEG files, in pictures a second."""

    batch: int
    workers: int
    cores: int
    alone: float
    """The step on a batch that lies on the card."""
    fed: float


class Report(NamedTuple):
    """Everything that a run found so far."""

    date: str
    machine: Machine
    peak_known: bool
    tests: str = "not run"
    steps: tuple[StepRow, ...] = ()
    loader: LoaderRow | None = None
    left_out: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Give everything for machines."""
        own = self._asdict()
        steps = [row._asdict() | {"bytes_per_image": row.bytes_per_image} for row in self.steps]
        loader = None if self.loader is None else self.loader._asdict()
        return own | {"machine": self.machine._asdict(), "steps": steps, "loader": loader}

    def page(self) -> str:
        """Give Markdown."""
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
            "`OptimiserStep` on uint8 pictures of 224 x 224 that lie on the card, not compiled, "
            "at the largest power of two that fits (1,024 at most). Share of the peak: "
            "operations of the published step, of which ours leaves out some 2 % "
            "(decision 0002), over the data sheet's dense peak.",
        ]
        if not self.peak_known:
            lines.append("The peak of this card is not known here, so its share is left out.")
        lines += ["", *_table(STEP_HEAD, [_step_cells(row) for row in self.steps])]
        lines += [
            "",
            "Times theirs over ours: the same weights, positions, eps, batch, mask and precision "
            "in one process, both in turn; median (quartiles) of the pairs. Their step checks "
            "nothing; ours reads back whether loss and gradient are finite.",
            "",
            "## Memory",
            "",
            *_table(MEMORY_HEAD, [_memory_cells(row) for row in self.steps if row.batch]),
            "",
            "## Loader and step",
            "",
            self._loader_line(),
        ]
        if self.left_out:
            lines += ["", "Left out, for want of time: " + ", ".join(self.left_out) + "."]
        return "\n".join(lines) + "\n"

    def _loader_line(self) -> str:
        if self.loader is None:
            return "Not measured."
        row = self.loader
        return (
            f"ViT-B/16, batch {row.batch}, JPEGs of 500 x 375 drawn for it (cached by the system), "
            f"{row.workers} readers on {row.cores} cores: {row.fed:,.0f} pictures/s, "
            f"{row.fed / row.alone:.0%} of the step alone ({row.alone:,.0f})."
        )


STEP_HEAD = ("model", "precision", "batch", "pictures/s", "of the peak", "peak memory",
             "times theirs over ours", "pairs", "at batch", "note")  # fmt: skip
MEMORY_HEAD = ("model", "precision", "weights", "gradients", "moments", "a picture adds",
               "peak", "theirs at its batch")  # fmt: skip


def _step_cells(row: StepRow) -> tuple[str, ...]:
    return (
        row.model,
        row.precision,
        _number(row.batch),
        _number(row.images_per_second),
        "" if row.share is None else f"{row.share:.0%}",
        _gb(row.peak_bytes),
        spread(row.ratios),
        str(len(row.ratios)),
        _number(row.paired_batch),
        row.note,
    )


def _memory_cells(row: StepRow) -> tuple[str, ...]:
    kept = (row.weight_bytes, row.gradient_bytes, row.moment_bytes)
    added = row.bytes_per_image
    a_picture = "" if added is None else f"{added / 1e6:.1f} MB"
    theirs = "" if row.paired_batch is None else f"{_gb(row.their_peak_bytes)} ({row.paired_batch})"
    return row.model, row.precision, *map(_gb, kept), a_picture, _gb(row.peak_bytes), theirs


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _gb(value: int | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def this_machine() -> Machine:
    """Ask torch and the driver."""
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
