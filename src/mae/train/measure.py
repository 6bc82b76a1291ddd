"""What a recipe would do with pictures, by the same functions that pre-training begins with."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mae.config.run import PixelConfig, PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import Source
from mae.errors import MaeError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.planning.estimate import hours_in_words
from mae.planning.hardware import choose_device, has_bf16
from mae.train.resolve import batch_plan, count_steps, measured_steps, resolve, settle_precision

LEARNT_STEPS = 9_360
"""Steps after which the demo's features beat raw pixels (docs/log.md)."""
LONGEST = 1600
"""Most epochs that the paper trained (Figure 7)."""
BYTES_PER_PARAMETER = 16
"""Of float32: the weight, its gradient and two moments."""

_MEASURED = 2  # pictures a step, where a CPU's rate is measured


class Outlook(NamedTuple):
    """What a recipe would do."""

    kind: PixelKind
    config: PretrainConfig
    """As it would be run."""
    notes: Sequence[str]
    """What pre-training would say to begin with."""
    steps_per_epoch: int
    num_steps: int
    parameters: int
    bytes_per_picture: float
    """Kept by the forward pass for the backward pass."""
    at_once: int
    """Pictures in a forward pass, those of micro-batches side by side together."""
    device: str
    rate: float
    """Images a second, measured here; nan if it could not be."""
    waiting: float = 0.0
    """Threads of other work that there were for each processor of a CPU meanwhile."""

    @property
    def sensible_epochs(self) -> int:
        """Epochs that make as many steps as the demo took to learn, within what was published."""
        needed = math.ceil(LEARNT_STEPS / self.steps_per_epoch)
        return min(max(round(self.config.epochs), needed), max(LONGEST, round(self.config.epochs)))

    @property
    def state_bytes(self) -> int:
        """Memory of the network and its optimiser."""
        return BYTES_PER_PARAMETER * self.parameters

    @property
    def memory_bytes(self) -> float:
        """Least memory of the network and a step."""
        return self.state_bytes + self.at_once * self.bytes_per_picture

    def hours(self, epochs: float) -> float:
        """Time of so many epochs at the measured rate."""
        return epochs * self.steps_per_epoch * self.config.batch / self.rate / 3600

    def rows(self, median_size: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
        """Give what it says, for people.

        Args:
            median_size: height and width of the pictures, to hold the crops against.
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
        """Give what it says, for machines."""
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
    """Settle a recipe as pre-training does; None, with the reason as a note, where it refuses."""
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
    """Say what a settled recipe would do, after some steps that are thrown away.

    Args:
        config: by `settle`.
        kind: by `settle`.
        source: the pictures.
        notes: by `settle`.
        say: takes one line for the user.
    """
    plan = batch_plan(config, source, kind)
    model = create(config.model, seed=config.seed)
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
    except MaeError as error:  # too many pictures in a row are broken
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


def others_waiting() -> float:
    """Give the threads of other work that there are for each processor."""
    processors = os.cpu_count() or 1
    return max(0.0, os.getloadavg()[0] - torch.get_num_threads()) / processors


def saved_bytes(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, *, half: bool = False
) -> float:
    """Measure what the forward pass of a training step keeps for the backward pass.

    Args:
        model: on the CPU; its sizes are the same everywhere.
        images: B C H W of the stored type.
        noise: B L.
        half: whether under autocast to bf16, which also keeps a copy of each weight.

    Returns:
        Bytes of a picture, parameters not counted.
    """

    def compute() -> Tensor:
        return model(model.normalize(images), noise=noise).loss  # type: ignore[no-any-return]

    return kept_for_backward(model, compute, half=half) / len(images)


def kept_for_backward(
    model: nn.Module, compute: Callable[[], Tensor], *, half: bool = False
) -> int:
    """Measure the bytes that a model's forward pass keeps for the backward, parameters aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself it would hold its own graph, which nothing frees then

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, half):
        loss = compute()
    assert loss.grad_fn is not None  # what it keeps is alive, so no address came twice
    return sum(kept.values())
