"""Benchmark a run: loader alone, step alone, both together, and what would make it faster."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch

from mae.config.model import require
from mae.config.run import PretrainConfig
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError
from mae.model.create import create
from mae.planning.estimate import Estimate, rate_in_words
from mae.planning.hardware import choose_device, cores, this_machine, use_threads
from mae.progress import Progress
from mae.train.choice import choose_config
from mae.train.measure import Measurement, busy_note, few_images, measure
from mae.train.resolve import batch_plan, resolve
from mae.train.session import refuse_in_readers
from mae.train.workers import choose_workers
from mae.weights.given import Given
from mae.weights.start_from import require_init

WAITS = 0.1
"""Fraction of the time spent waiting for images above which the loader gets advice."""
_UNDISTURBED = 0.8  # of the throughput without mutual interference
_KEPT_EDGE = 256 / 224  # short side of a stored image over the edge of its crops, as published


def bench_run(
    data: Data,
    config: PretrainConfig,
    *,
    recipe: str = "custom",
    init: str | Path | None = None,
    seconds: float = 20.0,
    kept: Collection[str] | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> BottleneckReport:
    """Measure loader and step of a run, alone and together, and report the bottleneck.

    Args:
        data: whatever `open_source` takes.
        config: the run.
        recipe: its name, for messages.
        init: weights that the configuration takes its network from; only the network is read.
        seconds: approximate measuring time; starting readers and the first steps is extra.
        kept: names of the fields that the user set, see `pretrain`.
        quiet: show no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    refuse_in_readers("jobs.bench.bench_run")
    require(0 < seconds < math.inf, "seconds", seconds, "a number above 0")
    require_init(config, init, **given)
    with Progress(quiet=quiet) as progress, use_threads(config.threads):
        source = open_source(data, log=progress.note)
        choose = partial(choose_config, config, source, kept=kept, log=progress.note)
        config = choose(from_weights=init is not None)
        device = choose_device(config.device)
        if init is not None and not config.follow_weights:
            raise ConfigError(f"init: has no effect on the speed of {recipe}; drop it")
        resolved = resolve(config, source, weights=init, given=given)
        for note in resolved.notes:
            progress.note(note)
        config, kind = resolved.config, resolved.kind
        few = few_images(config, device)
        # Chosen as the run would: from the cost of its own batches.
        whole = batch_plan(config, source, kind)
        workers = choose_workers(config, whole, device, log=progress.note)
        progress.note(f"measuring {few.batch} images a step for {seconds:g} s on {device}")
        plan = batch_plan(few, source, kind)
        model = create(few.model, objective=few.objective, seed=few.seed)
        try:
            measured = measure(few, plan, model, workers=workers, seconds=seconds)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"micro_batch: {few.fixed_micro_batch or few.batch} images a pass do not fit into "
                f"the memory of {device}; use a smaller --micro-batch"
            ) from error
        estimate = Estimate.of_run(
            config, this_machine(config.device), len(source),
            measured_rate=measured.both, recipe=recipe,
        )  # fmt: skip
        return BottleneckReport(estimate, measured, isinstance(source, ArraySource))


class BottleneckReport(NamedTuple):
    """What limits the speed of a run: its loader or its step."""

    estimate: Estimate
    """The whole run at the rate of both together."""
    measured: Measurement
    in_memory: bool
    """Whether the source holds decoded images in memory."""

    @property
    def bottleneck(self) -> str:
        """Name the slower of the two: "loader" or "step"."""
        return "loader" if self.measured.loader < self.measured.step else "step"

    @property
    def waiting(self) -> float:
        """Fraction of the time that the step waits for images, with both running."""
        return max(0.0, 1 - self.measured.both / self.measured.step)

    @property
    def readers_needed(self) -> int:
        """Reader processes needed to keep up with the step."""
        return math.ceil(self.measured.step * self.measured.reader_seconds_per_image)

    @property
    def verdict(self) -> str:
        """The bottleneck in one line."""
        ratio = self.measured.loader / self.measured.step
        text = f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"
        return f"the {self.bottleneck} is the bottleneck: the loader makes {text} x the step's rate"

    def advice(self) -> Iterator[str]:
        """Yield one line for each change that would make the run fit, or faster."""
        config, largest = self.estimate.config, self.estimate.largest_micro_batch
        asked = config.fixed_micro_batch or config.batch
        if not largest:
            yield "not one image of this network fits into the memory beside its state (formula)"
        elif asked > largest:
            yield f"{asked:,} images a pass do not fit (formula): use --micro-batch {largest}"
        if self.bottleneck == "loader" or self.waiting > WAITS:
            yield self._loader_advice()
        if self.bottleneck == "step":
            yield from self._step_advice(asked, min(largest, config.batch))
        loader, step, both, *_ = self.measured
        workers, threads = self.measured.workers, self.measured.threads
        # Without workers they take turns.
        alone = min(loader, step) if workers else 1 / (1 / loader + 1 / step)
        if both < _UNDISTURBED * alone:
            ratio = f"together they make {both / alone:.0%} of the undisturbed rate"
            yield f"{ratio}: {workers} readers and {threads} threads share {cores()} cores"

    def _loader_advice(self) -> str:
        measured, config, needed = self.measured, self.estimate.config, self.readers_needed
        spent, busy = measured.reader_seconds_per_image, measured.reader_busy_seconds_per_image
        takes = f"an image takes a reader {1000 * spent:.3g} ms"
        if busy < spent / 2 and needed > measured.workers:
            waits = f"{1000 * (spent - busy):.3g} of them waiting for the source"
            return f"use --workers {needed}, or mae data pack to a near disk: {takes}, {waits}"
        wanted = measured.step * busy
        free = cores() - (measured.threads if self.estimate.machine.device == "cpu" else 1)
        if wanted <= free:
            if needed > measured.workers:
                return f"use --workers {needed}: {takes}"
            return f"{needed} workers should keep up: mae bench data shows which stage is slow"
        assert isinstance(config, PretrainConfig)
        edge = round(_KEPT_EDGE * max(config.model.image_size))
        ways = {
            f"--workers {free}": free > measured.workers,
            f"mae data pack --short-side {edge}": not self.in_memory,
            "--augment.scaled-decode": not (self.in_memory or config.augment.scaled_decode),
            "--views-per-decode 2": not self.in_memory and config.views_per_decode == 1,
        }
        use = " or ".join(way for way, helps in ways.items() if helps) or "fewer threads"
        return f"use {use}: loading needs {wanted:.2g} cores, {max(free, 0)} are free"

    def _step_advice(self, asked: int, most: int) -> Iterator[str]:
        machine, threads = self.estimate.machine, self.measured.threads
        if machine.device == "cpu" and threads < cores():
            yield f"the step has {threads} of {cores()} cores: use --threads {cores()}"
        if tip := self.estimate.precision_advice():
            yield tip
        if machine.device != "cpu" and asked < most:
            yield f"a pass of more images fits (formula): use --micro-batch {most}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table, the verdict, the time of the run and advice."""
        measured, config, device = self.measured, self.estimate.config, self.estimate.machine.device
        few, workers = measured.images_per_step, measured.workers
        step = f"steps of {few:,} on {device} in {config.precision}"
        if device == "cpu":
            step += f", {measured.threads} threads"
        notes = {
            "loader alone": f"{workers} workers" if workers else "the training process reads",
            "step alone": step,
            "both together": f"waits for images {self.waiting:.0%} of the time",
        }
        yield "", "images/s", "ms an image", ""
        for (name, note), rate in zip(notes.items(), measured, strict=False):
            yield name, rate_in_words(rate), f"{1000 / rate:.3g}", note
        yield ("",)
        yield (self.verdict,)
        less = f"; less, as an update weighs more on {few} images" if few < config.batch else ""
        yield (f"the whole run here: {self.estimate.time_in_words()}{less}",)
        yield from ((line,) for line in self.advice())
        yield from ((line,) for line in busy_note(measured.others_waiting))
        if measured.unreadable:
            yield (f"{measured.unreadable} images could not be read; others replaced them",)

    def values(self) -> dict[str, Any]:
        """Return all values for JSON."""
        estimate, measured = self.estimate, self.measured._asdict()
        return {
            "images_per_second": {k: measured.pop(k) for k in ("loader", "step", "both")},
            "wall": self.bottleneck,
            "verdict": self.verdict,
            "advice": [*self.advice()],
            "waiting": self.waiting,
            "readers_needed": self.readers_needed,
            "cores": cores(),
            "device": estimate.machine.device,
            "precision": estimate.config.precision,
            "batch": estimate.config.batch,
            "steps": estimate.steps,
            "hours": estimate.hours,
            **measured,
        }
