"""Find the bottleneck of a run, loader or step, with its duration and advice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from mae.data.sources.source import ArraySource, Source
from mae.planning.estimate import Plan, hours_in_words
from mae.planning.hardware import cores

WAITS = 0.1
"""Fraction of the time spent waiting for images above which the loader gets advice."""
_SHARED = 0.8  # of the throughput without mutual interference
_KEPT_EDGE = 256 / 224  # short side of a stored image over the edge of its crops, as published


class Reading(NamedTuple):
    """Time of one process to read and prepare an image."""

    seconds: float
    busy_seconds: float
    """CPU time; the rest is waiting for the source."""

    @property
    def waits(self) -> bool:
        """Whether most of the time is waiting."""
        return self.busy_seconds < self.seconds / 2


class Verdict(NamedTuple):
    """Throughput of a run's loader and step in images per second, alone and together."""

    loader: float
    step: float
    both: float
    pictures: int
    """Images of a measured step; on a CPU fewer than a step of the run has."""
    workers: int
    threads: int
    reading: Reading
    planned: Plan
    """The whole run at the throughput of both together."""
    largest: int
    """Largest micro-batch that fits, by the formula of `mae plan`."""
    in_memory: bool
    unreadable: int
    others: float = 0.0
    """Other runnable threads per processor of a CPU during the measurement."""

    @property
    def wall(self) -> str:
        """Name the slower of the two: "loader" or "step"."""
        return "loader" if self.loader < self.step else "step"

    @property
    def waiting(self) -> float:
        """Fraction of the time that the step waits for images, with both running."""
        return max(0.0, 1 - self.both / self.step)

    @property
    def readers_needed(self) -> int:
        """Reader processes needed to keep up with the step."""
        return math.ceil(self.step * self.reading.seconds)

    @property
    def cores_needed(self) -> float:
        """Cores that these reader processes keep busy."""
        return self.step * self.reading.busy_seconds

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        ratio = self.loader / self.step
        if self.wall == "loader":
            return f"the loader is the wall: it makes {ratio:.2g} of what the step takes"
        times = f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"
        return f"the step is the wall: the loader makes {times} times what it takes"

    def advice(self) -> Iterator[str]:
        """Yield advice that follows from what was measured or counted."""
        config = self.planned.config
        asked = config.fixed_micro_batch or config.batch
        if not self.largest:
            yield "not one picture of this network fits into the memory beside its state (formula)"
        elif asked > self.largest:
            use = f"use --micro-batch {self.largest}"
            yield f"{asked:,} pictures a pass do not fit into the memory (formula): {use}"
        if self.wall == "loader" or self.waiting > WAITS:
            yield from self._of_the_loader()
        if self.wall == "step":
            yield from self._of_the_step()
        alone = min(self.loader, self.step)
        if not self.workers:  # one after the other
            alone = 1 / (1 / self.loader + 1 / self.step)
        if self.both < _SHARED * alone:
            yield (
                f"together they make {self.both / alone:.0%} of what they would undisturbed: "
                f"{self.workers} readers and {self.threads} threads share {cores()} cores"
            )

    def _of_the_loader(self) -> Iterator[str]:
        spent, idle = 1000 * self.reading.seconds, self.reading.seconds - self.reading.busy_seconds
        if self.reading.waits and self.readers_needed > self.workers:
            yield (
                f"use --workers {self.readers_needed}: a picture takes a process {spent:.3g} ms, "
                f"{1000 * idle:.3g} of them waiting for the source; or mae data pack it to a disk "
                "that is near"
            )
            return
        free = cores() - (self.threads if self.planned.machine.device == "cpu" else 1)
        enough = self.readers_needed if self.cores_needed <= free else free
        if enough > self.workers:
            yield (
                f"use --workers {enough}: the step takes what {self.readers_needed} make, at "
                f"{spent:.3g} ms a picture"
            )
        if enough < self.readers_needed:
            wanted = f"{self.cores_needed:.2g} cores are wanted for the pictures"
            yield f"{wanted}, {max(free, 0)} are free beside the step{self._cheaper()}"
        elif enough <= self.workers:
            yield f"{enough} workers should keep up: mae bench data says which stage is slow"

    def _cheaper(self) -> str:
        config = self.planned.config
        ways = []
        if not self.in_memory:
            edge = round(_KEPT_EDGE * max(config.model.image_size))
            ways.append(f"mae data pack --short-side {edge} where they are larger")
            if not config.augment.scaled_decode:
                ways.append("--augment.scaled-decode for large JPEGs")
            if config.views_per_decode == 1:
                ways.append("--views-per-decode 2")
        return f": make them cheaper by {', or '.join(ways)}" if ways else ""

    def _of_the_step(self) -> Iterator[str]:
        config, machine = self.planned.config, self.planned.machine
        asked, most = config.fixed_micro_batch or config.batch, min(self.largest, config.batch)
        if machine.device == "cpu":
            if self.threads < cores():
                yield f"the step has {self.threads} of {cores()} cores: use --threads {cores()}"
            return
        if machine.device == "cuda" and config.precision == "float32":
            half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            peak = machine.peak_flops(half) / machine.peak_flops("float32")
            known = "" if math.isnan(peak) else f": {peak:.0f} times the peak (data sheet)"
            yield f"use --precision {half}{known}"
        if asked < most:
            yield f"a pass of more pictures fits (formula): use --micro-batch {most}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table, the verdict, the time of the run and advice."""
        config, machine = self.planned.config, self.planned.machine
        readers = f"{self.workers} workers" if self.workers else "the training process reads"
        how = f"steps of {self.pictures:,} on {machine.device} in {config.precision}"
        if machine.device == "cpu":
            how += f", {self.threads} threads"
        yield "", "pictures/s", "ms a picture", ""
        yield _row("loader alone", self.loader, readers)
        yield _row("step alone", self.step, how)
        yield _row("both together", self.both, f"waits for pictures {self.waiting:.0%} of the time")
        yield ("",)
        yield (self.sentence,)
        yield (self._run_in_words(),)
        yield from ((line,) for line in self.advice())
        if self.others > 1:
            yield (f"too slow: {self.others:.1f} others waited for each processor meanwhile",)
        if self.unreadable:
            yield (f"{self.unreadable} pictures could not be read; others stood in for them",)

    def _run_in_words(self) -> str:
        config, steps = self.planned.config, self.planned.num_steps
        assert steps is not None
        epochs = steps / self.planned.steps_per_epoch
        what = f"{steps:,} steps of {config.batch:,}, {epochs:,.4g} epochs"
        line = f"the whole run would take about {hours_in_words(self.planned.hours)} here: {what}"
        if self.pictures < config.batch:
            line += f"; less, as the update of a step weighs more on {self.pictures} pictures"
        return line

    def values(self) -> dict[str, Any]:
        """Return all values for JSON."""
        config = self.planned.config
        return {
            "images_per_second": {"loader": self.loader, "step": self.step, "both": self.both},
            "wall": self.wall,
            "verdict": self.sentence,
            "advice": [*self.advice()],
            "waiting": self.waiting,
            "reader_seconds_per_picture": self.reading.seconds,
            "reader_busy_seconds_per_picture": self.reading.busy_seconds,
            "readers_needed": self.readers_needed,
            "workers": self.workers,
            "threads": self.threads,
            "cores": cores(),
            "device": self.planned.machine.device,
            "precision": config.precision,
            "pictures_per_step": self.pictures,
            "batch": config.batch,
            "steps": self.planned.num_steps,
            "hours": self.planned.hours,
            "unreadable": self.unreadable,
            "others_waiting": self.others,
        }


def is_in_memory(source: Source) -> bool:
    """Return whether the source holds decoded images in memory."""
    return isinstance(source, ArraySource)


def _row(name: str, rate: float, how: str) -> tuple[str, str, str, str]:
    few = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return name, few, f"{1000 / rate:.3g}", how
