"""Preview a pre-training recipe on given data: steps, memory and time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from mae.config.run import PixelConfig, PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import Source
from mae.errors import MaeError
from mae.model.create import create
from mae.planning.estimate import hours_in_words
from mae.planning.hardware import choose_device, has_bf16
from mae.train.measure import count_steps, measured_steps, others_waiting, saved_bytes
from mae.train.resolve import batch_plan, resolve, settle_precision

LEARNT_STEPS = 9_360
"""Steps after which the demo's features beat raw pixels (docs/log.md)."""
LONGEST = 1600
"""Longest training of the paper in epochs (He et al. 2021, Figure 7)."""
BYTES_PER_PARAMETER = 16
"""In float32: the weight, its gradient and two moments."""

_MEASURED = 2  # images per step when the rate of a CPU is measured


class Outlook(NamedTuple):
    """Predicted steps, memory and time of a recipe."""

    kind: PixelKind
    config: PretrainConfig
    """The resolved configuration of the run."""
    notes: Sequence[str]
    """Notes that pre-training would print at its start."""
    steps_per_epoch: int
    num_steps: int
    parameters: int
    bytes_per_picture: float
    """Bytes that the forward pass keeps for the backward pass."""
    at_once: int
    """Images in memory at a time, summed over parallel micro-batches."""
    device: str
    rate: float
    """Measured images per second; nan if the measurement failed."""
    waiting: float = 0.0
    """Other runnable threads per processor of a CPU during the measurement."""

    @property
    def sensible_epochs(self) -> int:
        """Epochs for at least `LEARNT_STEPS` steps, limited to the paper's longest training."""
        needed = math.ceil(LEARNT_STEPS / self.steps_per_epoch)
        return min(max(round(self.config.epochs), needed), max(LONGEST, round(self.config.epochs)))

    @property
    def state_bytes(self) -> int:
        """Memory of the network and its optimiser in bytes."""
        return BYTES_PER_PARAMETER * self.parameters

    @property
    def memory_bytes(self) -> float:
        """Minimum memory of the network and a step in bytes."""
        return self.state_bytes + self.at_once * self.bytes_per_picture

    def hours(self, epochs: float) -> float:
        """Hours of that many epochs at the measured rate."""
        return epochs * self.steps_per_epoch * self.config.batch / self.rate / 3600

    def rows(self, median_size: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
        """Yield rows (name, text) to print.

        Args:
            median_size: median height and width of the images, to compare with the crops.
        """
        yield from self._input_rows(median_size)
        yield "batch", f"{self.config.batch:,}"
        yield from (("", note) for note in self.notes)
        epochs = round(self.config.epochs)
        yield "steps", f"{self.steps_per_epoch:,} an epoch, {self.num_steps:,} in all"
        yield "epochs", self._about_epochs()
        if not math.isnan(self.rate):
            yield from self._cost_rows()
            if self.sensible_epochs > epochs:
                more = hours_in_words(self.hours(self.sensible_epochs))
                yield "", f"about {more} for {self.sensible_epochs:,} epochs"

    def _input_rows(self, median_size: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
        model, dtype = self.config.model, self.kind.dtype
        usual = model.pixels.mean == PixelConfig().mean
        scaling = "ImageNet's" if usual else "measured"
        yield "pixels", f"{self.kind.channels} x {dtype}; {scaling} mean and deviation"
        if usual and dtype == "float32":
            yield "", "ImageNet's fit values from 0 to 1 alone; for others add --measure-pixels"
        (H, W), (low, high) = model.image_size, self.config.augment.crop_scale
        yield "crops", f"{low:.0%} to {high:.0%} of the area of each picture, as {H} x {W}"
        if median_size is not None and median_size[0] * median_size[1] < H * W:
            h, w = (
                max(2 * model.patch_size, _down(edge, model.patch_size)) for edge in median_size
            )
            size = "{} x {}".format(*median_size)
            yield "", f"half of them have {size} or less; --image-size {h} {w} enlarges fewer"

    def _about_epochs(self) -> str:
        epochs, sensible = round(self.config.epochs), self.sensible_epochs
        demo = f"the {LEARNT_STEPS:,} in which the demo learnt"
        if sensible <= epochs:
            return f"{epochs:,} make enough steps: at least {demo}"
        if sensible * self.steps_per_epoch >= LEARNT_STEPS:
            return f"{epochs:,} make fewer steps than {demo}: --epochs {sensible} makes as many"
        steps = f"{sensible * self.steps_per_epoch:,} steps"
        return (
            f"few pictures: {sensible:,} epochs, the most the paper trained, make {steps}, fewer "
            f"than {demo}; a smaller --batch makes more, --init starts from weights"
        )

    def _cost_rows(self) -> Iterator[tuple[str, str]]:
        state, pictures = self.state_bytes / 2**30, self.memory_bytes / 2**30
        at_once = f"{state:.2g} for the network, the rest for {self.at_once} pictures at a time"
        yield "memory", f"at least {pictures:.2g} GiB: {at_once}"
        epochs = round(self.config.epochs)
        rate = f"{self.rate:.3g} images/s, measured on this machine's {self.device}"
        yield "time", f"about {hours_in_words(self.hours(epochs))} for {epochs:,} epochs at {rate}"
        if self.waiting > 1:
            yield "", f"too long: {self.waiting:.1f} others waited for each processor meanwhile"

    def values(self) -> dict[str, Any]:
        """Return the values for JSON."""
        config = self.config
        return {
            "kind": self.kind._asdict(),
            "mean": config.model.pixels.mean,
            "std": config.model.pixels.std,
            "image_size": config.model.image_size,
            "patch_size": config.model.patch_size,
            "crop_scale": config.augment.crop_scale,
            "batch": config.batch,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": config.epochs,
            "steps": self.num_steps,
            "sensible_epochs": self.sensible_epochs,
            "memory_bytes": None if math.isnan(self.rate) else self.memory_bytes,
            "device": self.device,
            "images_per_second": None if math.isnan(self.rate) else self.rate,
            "hours": None if math.isnan(self.rate) else self.hours(config.epochs),
        }


def _down(edge: int, patch_size: int) -> int:
    return edge // patch_size * patch_size


def settle(
    config: PretrainConfig, source: Source
) -> tuple[tuple[PretrainConfig, PixelKind] | None, list[str]]:
    """Resolve a recipe as pre-training does; None, with the reason as a note, on an error."""
    notes: list[str] = []
    try:
        return resolve(config, source, say=notes.append), notes
    except MaeError as error:
        return None, [str(error)]


def look_ahead(
    config: PretrainConfig,
    kind: PixelKind,
    source: Source,
    *,
    notes: Sequence[str],
    say: Callable[[str], None],
) -> Outlook:
    """Predict steps, memory and time of a resolved recipe, from measured and discarded steps.

    Args:
        config: from `settle`.
        kind: from `settle`.
        source: the images.
        notes: from `settle`.
        say: prints one line for the user.
    """
    plan = batch_plan(config, source, kind)
    model = create(config.model, objective=config.objective, seed=config.seed)
    device = choose_device(config.device)
    config = settle_precision(config, has_bf16=has_bf16(device))
    micro_batch = config.fixed_micro_batch or config.batch
    side_by_side = 1
    few = dataclasses.replace(config, batch=min(config.batch, micro_batch), micro_batch=None)
    if device.type == "cpu":
        side_by_side = min(torch.get_num_threads(), -(-config.batch // micro_batch))
        few = dataclasses.replace(few, batch=min(_MEASURED, config.batch))
    few_plan = batch_plan(few, source, kind)
    say(f"measuring the rate of {config.model.image_size} on {device}, {few.batch} pictures a step")
    try:
        batch = training_batch(dataclasses.replace(plan, batch=min(2, config.batch)), 0)
        kept = saved_bytes(model, batch.images, batch.noise)
        steps_an_hour = measured_steps(few, few_plan, minutes=60, model=model)
        rate = steps_an_hour * few.batch / 3600
    except MaeError as error:  # too many unreadable images in a row
        say(str(error))
        kept = rate = math.nan
    return Outlook(
        kind=kind,
        config=config,
        notes=notes,
        steps_per_epoch=plan.batches_per_epoch,
        num_steps=count_steps(config, plan, model),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        bytes_per_picture=kept,
        at_once=min(config.batch, micro_batch * side_by_side),
        device=device.type,
        rate=rate,
        waiting=others_waiting() if device.type == "cpu" else 0.0,
    )
