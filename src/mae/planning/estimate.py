"""Estimate memory, time and data loading cores of a pre-training run.

Each row names its basis: given, counted or from a data sheet; measured; a formula tested against
the memory and FLOPs that torch reports; or an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from mae.config.model import ModelConfig
from mae.config.run import PretrainConfig
from mae.config.sizes import size_name
from mae.model.costs import FLOAT32, kept_bytes, recomputed_bytes, step_flops
from mae.planning.hardware import CARDS, Machine

LEFT_FREE = 0.1
"""Fraction of the memory left free for temporary tensors and allocator fragmentation."""
CORE_RATE = 700
"""Images per second that a core reads, decodes and crops (109 kB JPEGs, docs/performance.md)."""

GIVEN, SHEET, TESTED, ESTIMATE = "given", "data sheet", "formula, tested", "estimate"
MEASURED, ELSEWHERE, UNKNOWN = "measured", "measured elsewhere", "not known"


class Plan(NamedTuple):
    """Estimated requirements of a run."""

    recipe: str
    config: PretrainConfig
    machine: Machine
    images: int
    images_from: str
    parameters: int
    state_bytes: int
    """Per rank: weights, gradients, moments, fixed position tables, half-precision copies."""
    rate: float
    """Images per second over all ranks; nan if unknown."""
    rate_basis: str
    rate_note: str

    @property
    def share(self) -> int:
        """Images per rank and step."""
        return math.ceil(self.config.batch / self.machine.ranks)

    @property
    def kept_bytes(self) -> int:
        """Activation bytes per image kept for the backward pass."""
        every = self.config.checkpoint_every
        model, objective = self.config.model, self.config.objective
        return kept_bytes(model, objective, **self._arithmetic, checkpoint_every=every)

    @property
    def recomputed_bytes(self) -> int:
        """Bytes per image recomputed at a time in the backward pass; 0 without recomputation."""
        every = self.config.checkpoint_every
        if every is None:
            return 0
        model, objective = self.config.model, self.config.objective
        return recomputed_bytes(model, objective, **self._arithmetic, checkpoint_every=every)

    @property
    def _arithmetic(self) -> dict[str, bool]:
        half = self.config.half is not None
        return {"half": half, "on_cpu": self.machine.device == "cpu"}

    @property
    def step_flops(self) -> int:
        """FLOPs per image in a step, averaged over the run if the image size grows."""
        every, objective = self.config.checkpoint_every, self.config.objective
        parts = stage_models(self.config)
        return round(
            sum(share * step_flops(m, objective, checkpoint_every=every) for m, share in parts)
        )

    @property
    def picture_bytes(self) -> int:
        """Bytes per image in a step: kept and recomputed activations, and normalised pixels."""
        pixels = _values(self.config.model) * FLOAT32
        return self.kept_bytes + self.recomputed_bytes + pixels

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batches in the memory of a rank: the current one, and on GPU the next."""
        model = self.config.model
        stored = (
            _values(model) * np.dtype(model.pixels.dtype).itemsize + model.num_patches * FLOAT32
        )
        return self.share * stored * (2 if self.machine.device == "cuda" else 1)

    @property
    def largest(self) -> int:
        """The largest micro-batch that fits; 0 if none does."""
        return fitting(
            self.share,
            memory_bytes=self.machine.memory_bytes,
            held_bytes=self.state_bytes + self.batch_bytes,
            picture_bytes=self.picture_bytes,
            threads=self._threads,
        )

    @property
    def micro_batch(self) -> int:
        """Images per forward pass of a rank: the recipe's, or an even split that fits."""
        return evenly(self.share, self.config.fixed_micro_batch or self.largest or 1)

    @property
    def micro_batches(self) -> int:
        """Forward passes per rank and step."""
        return math.ceil(self.share / self.micro_batch)

    @property
    def memory_bytes(self) -> int:
        """Bytes per rank during a step."""
        at_once = min(self.share, self.micro_batch * self._threads)
        return self.state_bytes + self.batch_bytes + at_once * self.picture_bytes

    @property
    def _threads(self) -> int:
        """Micro-batches in memory at the same time (decision 0009)."""
        one = self.machine.device != "cpu" or self.config.compile
        return 1 if one else torch.get_num_threads()

    @property
    def step_seconds(self) -> float:
        """Seconds per optimizer step."""
        return self.config.batch / self.rate

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch."""
        return self.images // self.config.batch

    @property
    def num_steps(self) -> int | None:
        """Steps of the run; None if they depend on an unknown rate."""
        config = self.config
        if config.steps is not None:
            return config.steps
        if config.minutes is None:
            return max(1, round(config.epochs * self.steps_per_epoch))
        return None if math.isnan(self.rate) else int(60 * config.minutes / self.step_seconds)

    @property
    def hours(self) -> float:
        """Hours of the run; nan if unknown."""
        if self.config.minutes is not None:
            return self.config.minutes / 60
        assert self.num_steps is not None
        return self.num_steps * self.step_seconds / 3600

    @property
    def loader_cores(self) -> float:
        """Cores needed to load images at this rate; nan if the rate is unknown."""
        return self.rate if math.isnan(self.rate) else math.ceil(self.rate / CORE_RATE)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield the table rows: name, value, basis."""
        yield from self._given_rows()
        yield from self._memory_rows()
        yield from self._time_rows()

    def _given_rows(self) -> Iterator[tuple[str, str, str]]:
        model, machine, precision = self.config.model, self.machine, self.config.precision
        name = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
        size = "{} x {}".format(*model.image_size)
        yield "recipe", f"{self.recipe}: {name} at {size}, {precision}", GIVEN
        yield "pictures", f"{self.images:,}, {self.images_from}", GIVEN
        each = f"{machine.memory_bytes / 2**30:,.3g} GiB"
        peak = machine.peak_flops(precision)
        if not math.isnan(peak):
            each += f" and {peak / 1e12:,.4g} TFLOP/s in {precision}"
        count = f"{machine.ranks} x " if machine.ranks > 1 else ""
        yield "machine", f"{count}{machine.name}: {each}", SHEET if machine.elsewhere else MEASURED
        if machine.card is not None:
            has_bf16 = CARDS[machine.card].has_bf16
            half = "bf16" if has_bf16 else "fp16"
            if precision == "float32":
                peak = machine.peak_flops(half) / machine.peak_flops(precision)
                yield "", f"--precision {half} has {peak:.0f} times the peak", SHEET
            elif precision == "bf16" and not has_bf16:
                yield "", f"{machine.name} has no bf16; use --precision fp16", SHEET

    def _memory_rows(self) -> Iterator[tuple[str, str, str]]:
        config, GiB = self.config, 2**30
        state = f"{self.parameters:,} parameters, gradients and two moments"
        if config.half is not None:
            state += f", {config.precision} copies"
        yield "state", f"{self.state_bytes / GiB:.3g} GiB: {state}", TESTED
        kept = f"{self.kept_bytes / 2**20:,.4g} MiB kept for the backward pass"
        if self.recomputed_bytes:
            kept += f", {self.recomputed_bytes / 2**20:,.4g} MiB computed again at a time"
        yield "a picture", kept, TESTED
        if not self.largest:
            yield "micro-batch", "not one picture fits beside the state and the batch", ESTIMATE
            return
        free = f"{self.largest:,} fit, a tenth of the memory left free"
        yield "micro-batch", free, ESTIMATE
        ranks = f"{self.share:,} a rank: " if self.machine.ranks > 1 else ""
        passes = f"{ranks}one pass"
        if self.micro_batches > 1:
            passes = f"{ranks}{self.micro_batches:,} passes of {self.micro_batch:,}, accumulated"
            if config.micro_batch is None:
                passes += f" (add --micro-batch {self.micro_batch})"
        yield "batch", f"{config.batch:,}, {passes}", GIVEN
        if config.fixed_micro_batch is not None and self.micro_batch > self.largest:
            yield "", f"too many: use --micro-batch {self.largest}", ESTIMATE
        rank = " a rank" if self.machine.ranks > 1 else ""
        yield "memory", f"{self.memory_bytes / GiB:.3g} GiB{rank}, at least", TESTED

    def _time_rows(self) -> Iterator[tuple[str, str, str]]:
        basis = self.rate_basis
        work = self.step_flops / 1e9
        yield "work", f"{work:,.4g} GFLOP a picture, forward and backward", TESTED
        if math.isnan(self.rate) or not self.largest:
            yield "time", self.rate_note if self.largest else "none: it does not fit", UNKNOWN
            return
        yield "rate", f"{_few_digits(self.rate)} pictures/s: {self.rate_note}", basis
        yield "step", f"{self.step_seconds:.3g} s", basis
        an_hour = 3600 / (self.steps_per_epoch * self.step_seconds)
        yield "epochs", f"{an_hour:.3g} an hour", basis
        assert self.num_steps is not None
        epochs = self.num_steps / self.steps_per_epoch
        what = f"{self.num_steps:,} steps, {epochs:,.4g} epochs"
        yield "time", f"about {hours_in_words(self.hours)}: {what}", basis
        cores = f"{self.loader_cores:,.0f} at {CORE_RATE} JPEGs of 109 kB a second and core"
        yield "loader cores", f"{cores}; yours: mae bench data", ELSEWHERE

    def values(self) -> dict[str, Any]:
        """Return all values for JSON; None if unknown."""
        known = not math.isnan(self.rate) and self.largest > 0
        basis = {name: basis for name, _, basis in self.rows() if name}
        return {
            "recipe": self.recipe,
            "images": self.images,
            "gpu": self.machine.card,
            "ranks": self.machine.ranks,
            "device": self.machine.device,
            "rank_memory_bytes": self.machine.memory_bytes,
            "precision": self.config.precision,
            "parameters": self.parameters,
            "state_bytes": self.state_bytes,
            "kept_bytes_per_picture": self.kept_bytes,
            "recomputed_bytes_per_picture": self.recomputed_bytes,
            "largest_micro_batch": self.largest,
            "batch": self.config.batch,
            "batch_per_rank": self.share,
            "micro_batch": self.micro_batch,
            "micro_batches": self.micro_batches,
            "memory_bytes": self.memory_bytes,
            "flops_per_picture": self.step_flops,
            "images_per_second": self.rate if known else None,
            "step_seconds": self.step_seconds if known else None,
            "steps": self.num_steps,
            "epochs_per_hour": (3600 / self.steps_per_epoch / self.step_seconds if known else None),
            "hours": self.hours if known else None,
            "loader_cores": self.loader_cores if known else None,
            "basis": basis,
        }


def fitting(
    share: int, *, memory_bytes: float, held_bytes: int, picture_bytes: int, threads: int
) -> int:
    """Return how many images fit into one forward pass, leaving a tenth of the memory free.

    Args:
        share: images per rank and step.
        memory_bytes: memory of the rank.
        held_bytes: bytes of its state and batches.
        picture_bytes: bytes per image in the pass.
        threads: micro-batches in memory at the same time, if there are several.
    """
    usable = (1 - LEFT_FREE) * memory_bytes
    fit = max(0, int((usable - held_bytes) // picture_bytes))
    return fit if fit >= share else fit // threads


def evenly(share: int, largest: int) -> int:
    """Return the micro-batch that splits `share` evenly into the fewest passes of `largest`."""
    return math.ceil(share / math.ceil(share / largest))


def _values(model: ModelConfig) -> int:
    return model.num_patches * model.patch_values


def _few_digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def hours_in_words(hours: float) -> str:
    """Format hours as rounded minutes or hours."""
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{hours:.2g} hours" if hours < 10 else f"{hours:,.0f} hours"


def stage_models(config: PretrainConfig) -> tuple[tuple[ModelConfig, float], ...]:
    """Return the model config for each image size of the run, with its fraction of the steps."""
    if config.start_size is None:
        return ((config.model, 1.0),)
    small = dataclasses.replace(config.model, image_size=config.start_size)
    return (small, config.start_share), (config.model, 1 - config.start_share)
