"""Estimate memory, arithmetic and time of a run from its configuration.

Each row names its basis: given, counted or from a data sheet; measured; a formula tested against
the memory and FLOPs that torch reports; or an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mae.config.kinds import AnyRunConfig
from mae.config.model import ModelConfig
from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig, TransferConfig
from mae.config.sizes import size_name
from mae.model.costs import (
    FLOAT32,
    HALF,
    ActivationBytes,
    activation_bytes,
    block_parameters,
    count_parameters,
    encoder_flops,
    step_flops,
)
from mae.planning.exchange import ddp_wire_bytes, fsdp_wire_bytes, gathered_bytes, why_not_sharded
from mae.planning.hardware import Machine
from mae.progress import hours_in_words

LEFT_FREE = 0.1
"""Fraction of the memory left free for temporary tensors and allocator fragmentation."""
FRACTION_OF_PEAK = 0.5
"""Fraction of a GPU's peak that optimised training steps reach."""
CORE_RATE = 700
"""Images per second that a core reads, decodes and crops (109 kB JPEGs, docs/performance.md)."""
LEARNT_STEPS = 9_360
"""Steps after which the demo's features beat raw pixels (docs/log.md)."""
LONGEST = 1600
"""Longest training of the paper in epochs (He et al. 2021, Figure 7)."""

GIVEN, SHEET, TESTED, ESTIMATE = "given", "data sheet", "formula, tested", "estimate"
MEASURED, ELSEWHERE, UNKNOWN = "measured", "measured elsewhere", "not known"
GiB = 2**30
_PRINTED = (
    "recipe", "images", "parameters", "state_bytes", "largest_micro_batch", "batch_per_rank",
    "micro_batch", "micro_batches", "memory_bytes", "strategy", "gathered_bytes", "wire_bytes",
    "flops_per_image", "images_per_second", "step_seconds", "steps", "epochs_per_hour", "hours",
    "loader_cores",
)  # fmt: skip


class Estimate(NamedTuple):
    """Estimated requirements of a run on a machine; figures that are unknown are nan."""

    config: AnyRunConfig
    machine: Machine
    images: int
    parameters: int
    """Trained parameters."""
    frozen: int
    """Frozen parameters and position tables."""
    measured_rate: float = math.nan
    """Measured images per second; nan: the rate follows from the machine's peak, if known."""
    measured_on: str = ""
    """What was measured."""
    recipe: str = "custom"
    images_from: str = "counted"

    @classmethod
    def of_run(cls, config: AnyRunConfig, machine: Machine, images: int, **known: Any) -> Estimate:
        """Count the parameters of a run: encoder, and decoder in pre-training; other heads not."""
        counts = count_parameters(config.model, decoder=isinstance(config, PretrainConfig))
        return cls(config, machine, images, *counts, **known)

    @property
    def batch_per_rank(self) -> int:
        """Images per rank and step."""
        return math.ceil(self.config.batch / self.machine.ranks)

    @property
    def ddp_fits(self) -> bool:
        """Whether the whole state, the batch and one image fit into the memory of each rank."""
        whole = self._replace(config=dataclasses.replace(self.config, strategy="ddp"))
        return whole.largest_micro_batch > 0

    @property
    def strategy(self) -> Literal["ddp", "fsdp"]:
        """What each rank holds; of "auto", DDP where it fits or FSDP2 cannot train the run."""
        if self.machine.ranks == 1 or self.config.strategy == "ddp":
            return "ddp"
        whole = why_not_sharded(self.config) or self.ddp_fits
        return "ddp" if self.config.strategy == "auto" and whole else "fsdp"

    @property
    def state_bytes(self) -> int:
        """Bytes per rank: weights, gradients, moments, average, half-precision copies, tables."""
        each = 5 if isinstance(self.config, FinetuneConfig) and self.config.ema is not None else 4
        state = each * FLOAT32 * self.parameters + FLOAT32 * self.frozen
        if self.strategy == "fsdp":  # weights are gathered in half precision, without copies
            return math.ceil(state / self.machine.ranks)
        # Autocast keeps a copy of each weight until the backward pass is done.
        return state + (0 if self.config.half is None else HALF * self.parameters)

    @property
    def _blocks(self) -> list[int]:
        """Parameters of each module that FSDP2 gathers by itself."""
        return block_parameters(self.config.model, decoder=isinstance(self.config, PretrainConfig))

    @property
    def gathered_bytes(self) -> int:
        """Bytes per rank of what FSDP2 gathers at a time; 0 for DDP."""
        if self.strategy == "ddp":
            return 0
        parameters = self.parameters + self.frozen
        return gathered_bytes(self._blocks, parameters, half=self.config.half is not None)

    @property
    def wire_bytes(self) -> int:
        """Bytes that a rank sends in a step, and receives."""
        counts, ranks = (self.parameters, self.frozen), self.machine.ranks
        if self.strategy == "ddp":
            return ddp_wire_bytes(self.parameters, ranks=ranks)
        half = self.config.half is not None
        return self.micro_batches * fsdp_wire_bytes(self._blocks, *counts, ranks=ranks, half=half)

    @property
    def activations(self) -> ActivationBytes:
        """Bytes per image for the backward pass: kept, and recomputed at a time."""
        config = self.config
        return activation_bytes(
            config.model, config.objective if isinstance(config, PretrainConfig) else None,
            half=config.half is not None, on_cpu=self.machine.device == "cpu",
            checkpoint_every=config.checkpoint_every, dense=getattr(config, "dense", None),
        )  # fmt: skip

    @property
    def _values(self) -> int:
        return self.config.model.num_patches * self.config.model.patch_values

    @property
    def image_bytes(self) -> int:
        """Bytes per image in a forward and backward pass."""
        pixels = 0 if isinstance(self.config, FinetuneConfig) else self._values * FLOAT32
        return sum(self.activations) + pixels

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batches in the memory of a rank: the current one, and on GPU the next."""
        model = self.config.model
        each = self._values * np.dtype(model.pixels.dtype).itemsize + model.num_patches * FLOAT32
        each *= 2 if self.machine.device == "cuda" else 1
        if isinstance(self.config, FinetuneConfig):  # normalised and mixed before it is split
            each += 2 * self._values * FLOAT32
        return self.batch_per_rank * each

    @property
    def _threads(self) -> int:
        """Micro-batches in memory at the same time (decision 0009)."""
        one = self.machine.device != "cpu" or self.config.compile or self.machine.ranks > 1
        return 1 if one else torch.get_num_threads()

    @property
    def largest_micro_batch(self) -> int:
        """Images of a pass that fit, with a tenth of the memory left free; 0 if none does."""
        usable = (1 - LEFT_FREE) * self.machine.memory_bytes
        usable -= self.state_bytes + self.gathered_bytes + self.batch_bytes
        fit = max(0, int(usable // self.image_bytes))
        return fit if fit >= self.batch_per_rank else fit // self._threads

    @property
    def micro_batch(self) -> int:
        """Images per forward pass of a rank: the recipe's, or an even split that fits."""
        most = self.config.fixed_micro_batch or self.largest_micro_batch or 1
        return split_evenly(self.batch_per_rank, most)

    @property
    def micro_batches(self) -> int:
        """Forward passes per rank and step."""
        return math.ceil(self.batch_per_rank / self.micro_batch)

    @property
    def memory_bytes(self) -> int:
        """Bytes per rank during a step."""
        at_once = min(self.batch_per_rank, self.micro_batch * self._threads)
        held = self.state_bytes + self.gathered_bytes + self.batch_bytes
        return held + at_once * self.image_bytes

    @property
    def flops_per_image(self) -> int:
        """FLOPs in a training step, averaged over the run if the image size grows."""
        config = self.config
        if isinstance(config, TransferConfig):
            return 3 * encoder_flops(config.model)  # the backward pass has twice the products
        every, objective = config.checkpoint_every, config.objective
        parts = stage_models(config)
        return round(sum(f * step_flops(m, objective, checkpoint_every=every) for m, f in parts))

    @property
    def images_per_second(self) -> float:
        """Rate over all ranks: measured, or from the peak."""
        if not self.largest_micro_batch or not math.isnan(self.measured_rate):
            return self.measured_rate
        peak = self.machine.peak_flops(self.config.precision)
        return self.machine.ranks * FRACTION_OF_PEAK * peak / self.flops_per_image

    @property
    def step_seconds(self) -> float:
        """Seconds per optimizer step."""
        return self.config.batch / self.images_per_second

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch."""
        return self.config.trained_images(self.images) // self.config.batch

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if they depend on an unknown rate."""
        return num_steps(self.config, self.steps_per_epoch, self.step_seconds)

    @property
    def epochs_per_hour(self) -> float:
        """Epochs per hour."""
        return 3600 / (self.steps_per_epoch * self.step_seconds)

    @property
    def hours(self) -> float:
        """Hours of the run."""
        return math.nan if self.steps is None else self.steps * self.step_seconds / 3600

    @property
    def loader_cores(self) -> float:
        """Cores needed to load images at this rate."""
        rate = self.images_per_second / CORE_RATE
        return rate if math.isnan(rate) else math.ceil(rate)

    @property
    def sensible_epochs(self) -> int:
        """Epochs for at least `LEARNT_STEPS` steps, limited to the paper's longest training."""
        epochs = round(self.config.epochs)
        needed = math.ceil(LEARNT_STEPS / self.steps_per_epoch)
        return min(max(epochs, needed), max(LONGEST, epochs))

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
        yield "images", f"{self.images:,}, {self.images_from}", GIVEN
        each = f"{machine.memory_bytes / GiB:,.3g} GiB"
        peak = machine.peak_flops(precision)
        if not math.isnan(peak):
            each += f" and {peak / 1e12:,.4g} TFLOP/s in {precision}"
        count = f"{machine.ranks} x " if machine.ranks > 1 else ""
        yield "machine", f"{count}{machine.name}: {each}", SHEET if machine.elsewhere else MEASURED
        if tip := self.precision_advice():
            yield "", tip, SHEET

    def precision_advice(self) -> str:
        """Return the precision that a GPU computes faster in, or has at all; "" if used."""
        machine, precision = self.machine, self.config.precision
        half = "bf16" if machine.has_bf16 else "fp16"
        if machine.device != "cuda" or precision in ("fp16", half):
            return ""
        times = machine.peak_flops(half) / machine.peak_flops("float32")
        why = "" if math.isnan(times) else f": {times:.0f} times the peak of float32"
        if precision == "bf16":
            why = f": {machine.name} has no bf16"
        return f"use --precision {half}{why}"

    def _memory_rows(self) -> Iterator[tuple[str, str, str]]:
        config, largest = self.config, self.largest_micro_batch
        state = f"{self.parameters:,} parameters, gradients and two moments"
        sharded = self.strategy == "fsdp"
        if config.half is not None and not sharded:
            state += f", {config.precision} copies"
        if self.machine.ranks > 1:
            held = "a part of the state" if sharded else "the whole state"
            auto = "fits" if self.ddp_fits else "does not fit"
            why = f"; auto: the whole {auto}" if config.strategy == "auto" else ""
            held = f"{self.strategy}: each rank holds {held}{why}"
            yield "strategy", held, ESTIMATE if why else GIVEN
        part = f", divided among {self.machine.ranks:,} ranks" * sharded
        yield "state", f"{self.state_bytes / GiB:.3g} GiB: {state}{part}", TESTED
        if sharded:
            count = f"{self.gathered_bytes / GiB:.3g} GiB"
            yield "gathered", f"{count}: what is outside of blocks, and two blocks", ESTIMATE
        kept, again = (count / 2**20 for count in self.activations)
        an_image = f"{kept:,.4g} MiB kept for the backward pass"
        if again:
            an_image += f", {again:,.4g} MiB recomputed at a time"
        yield "an image", an_image, TESTED
        if not largest:
            yield "micro-batch", "not one image fits beside the state and the batch", ESTIMATE
            return
        yield "micro-batch", f"{largest:,} fit, a tenth of the memory left free", ESTIMATE
        rank = " a rank" if self.machine.ranks > 1 else ""
        passes = f"{self.micro_batches:,} x {self.micro_batch:,} images{rank}"
        if self.micro_batches > 1 and config.micro_batch is None:
            passes += f" (add --micro-batch {self.micro_batch})"
        yield "batch", f"{config.batch:,}: {passes}", GIVEN
        if self.micro_batch > largest:
            yield "", f"too many: use --micro-batch {largest}", ESTIMATE
        basis = ESTIMATE if sharded else TESTED
        yield "memory", f"{self.memory_bytes / GiB:.3g} GiB{rank}, at least", basis
        if self.machine.ranks > 1:
            often = f", in {self.micro_batches:,} passes" * (sharded and self.micro_batches > 1)
            yield "exchange", f"{self.wire_bytes / GiB:.3g} GiB sent a rank and step{often}", TESTED

    def _time_rows(self) -> Iterator[tuple[str, str, str]]:
        work = self.flops_per_image / 1e9
        yield "work", f"{work:,.4g} GFLOP an image, forward and backward", TESTED
        if math.isnan(self.images_per_second):
            alone = "--measure for this machine, or " * (self.machine.ranks == 1)
            add = f"add {alone}--gpu h100 for another"
            fits = self.largest_micro_batch > 0
            yield "time", add if fits else "none: it does not fit", UNKNOWN
            return
        basis, note = MEASURED, self.measured_on
        if math.isnan(self.measured_rate):
            basis, note = ESTIMATE, f"{FRACTION_OF_PEAK:.0%} of the peak in {self.config.precision}"
            if self.machine.ranks > 1:
                note += ", exchange of gradients not counted"
        yield "rate", f"{rate_in_words(self.images_per_second)} images/s: {note}", basis
        yield "step", f"{self.step_seconds:.3g} s", basis
        yield "epochs", f"{self.epochs_per_hour:.3g} an hour", basis
        yield "time", self.time_in_words(), basis
        cores = f"{self.loader_cores:,.0f} at {CORE_RATE} JPEGs of 109 kB a second and core"
        yield "loader cores", f"{cores}; yours: mae bench data", ELSEWHERE

    def time_in_words(self) -> str:
        """Return duration, steps and epochs of a run whose rate is known."""
        assert self.steps is not None
        epochs = self.steps / self.steps_per_epoch
        return f"about {hours_in_words(self.hours)}: {self.steps:,} steps, {epochs:,.4g} epochs"

    def values(self) -> dict[str, Any]:
        """Return all values for JSON."""
        return {
            "gpu": self.machine.card,
            "ranks": self.machine.ranks,
            "device": self.machine.device,
            "rank_memory_bytes": self.machine.memory_bytes,
            "precision": self.config.precision,
            "batch": self.config.batch,
            "kept_bytes_per_image": self.activations.kept,
            "recomputed_bytes_per_image": self.activations.recomputed,
            **{name: getattr(self, name) for name in _PRINTED},
            "basis": {name: basis for name, _, basis in self.rows() if name},
        }


def num_steps(config: FitConfig, steps_per_epoch: int, step_seconds: float) -> int | None:
    """Return the optimiser steps that --epochs, --steps or --minutes give.

    Args:
        config: configuration of the run.
        steps_per_epoch: full batches per epoch.
        step_seconds: needed for --minutes; nan if unknown.

    Returns:
        The number of steps; None if it depends on an unknown rate.
    """
    if config.steps is not None:
        return config.steps
    if config.minutes is None:
        return max(1, round(config.epochs * steps_per_epoch))
    return None if math.isnan(step_seconds) else max(1, int(60 * config.minutes / step_seconds))


def split_evenly(batch: int, largest: int) -> int:
    """Return the micro-batch that splits a batch evenly into the fewest passes of `largest`."""
    return math.ceil(batch / math.ceil(batch / largest))


def rate_in_words(rate: float) -> str:
    """Format a rate with three digits or as a whole number."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def stage_models(config: PretrainConfig) -> tuple[tuple[ModelConfig, float], ...]:
    """Return the model config for each image size of the run, with its fraction of the steps."""
    if config.start_size is None:
        return ((config.model, 1.0),)
    small = dataclasses.replace(config.model, image_size=config.start_size)
    return (small, config.start_share), (config.model, 1 - config.start_share)
