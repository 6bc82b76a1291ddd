"""Training run configuration: frozen, validated dataclasses.

Derived values (the peak learning rate, the fraction of the warm-up) are properties or functions,
so that they cannot disagree with the fields. The field docstrings are the help texts of the
command line.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from mae.config.model import ChannelRule as ChannelRule
from mae.config.model import ModelConfig as ModelConfig
from mae.config.model import PixelConfig as PixelConfig
from mae.config.model import published_crop_pct, require, require_numbers
from mae.config.objective import ObjectiveConfig as ObjectiveConfig
from mae.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random crop and flip of each picture."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area a crop covers, smallest and largest; 1 1 keeps the whole."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, smallest and largest."""
    crop_clip: bool = False
    """Clip the first drawn crop to the image (published linear probe), not up to 10 draws."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    scaled_decode: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 where crops stay large enough: faster, 36 to 39 dB."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "0 < low <= high")
        require_numbers(self, "at least 0, at most 1", "flip", group="augment.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser and its schedule: linear warm-up, then half a cosine, per iteration."""

    name: Literal["adamw", "muon", "lars"] = "adamw"
    """muon (beyond the paper): Muon for the matrices of blocks, AdamW for the rest."""
    lr: float = 1.5e-4
    """Base learning rate per 256 images; the peak is lr * batch / 256."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    min_lr_scaled: bool = True
    """Whether layer decay scales min_lr as well (published PyTorch code: yes; OpenMMLab: no)."""
    warmup_epochs: float = 40.0
    """Length of the warm-up; its share of the run is kept when --steps or --minutes is given."""
    warmup_start: float = 0.0
    """Share of the peak rate at which the warm-up starts."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment; lars: the first is its momentum."""
    eps: float = 1e-8
    """Added to the root of the second moment; no effect on lars."""
    weight_decay: float = 0.05
    """Weight decay, decoupled except for lars; never on norms and biases."""
    decay_tokens: bool = True
    """Whether the cls and mask tokens are decayed (published PyTorch code: yes; OpenMMLab: no)."""
    clip_norm: float | None = None
    """Largest norm of the gradient; none: no clipping."""

    def __post_init__(self) -> None:
        check = partial(require_numbers, self, group="optim.")
        check("a number above 0", "lr", "clip_norm")
        check("at least 0", "min_lr", "warmup_epochs", "weight_decay")
        check("at least 0, at most 1", "warmup_start")
        check("at least 0, below 1", "betas")

    def peak_lr(self, batch: int) -> float:
        """Scale the base learning rate linearly by the batch (He et al. 2021, Table 8)."""
        return self.lr * batch / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """What every training shares: length, batch, optimiser, cadences, machine."""

    epochs: float = 400.0
    """Passes over the data."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    minutes: float | None = None
    """Time to train for, instead of epochs: the rate is measured, the steps are fixed once."""
    batch: int = 4096
    """Images of one optimiser step, whatever the micro-batch."""
    micro_batch: int | Literal["auto"] | None = None
    """Images of one forward and backward pass; auto: as many as fit; none: the whole batch."""
    checkpoint_every: int | None = None
    """Blocks in a row that keep only their input; the backward pass computes the rest again."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    seed: int = 0
    """Key of every random choice: initialisation, order, crops, flips, masks."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass, weights stay float32; auto: bf16 where a GPU has it."""
    compile: bool | None = None
    """Compile forward and backward, micro-batches one after the other; none: on a GPU."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best there is."""
    threads: int | None = None
    """Threads of the arithmetic; none: torch's own choice, recorded in the run."""
    workers: int | None = None
    """Processes that read pictures; auto: by cores and memory; 0: the training process."""
    save_every_steps: int = 500
    """Steps between checkpoints."""
    log_every_steps: int | None = None
    """Steps between rows of the log, the first step besides; none: about 200 rows in all."""
    keep: int = 2
    """Last checkpoints kept while the run goes on."""
    keep_checkpoints: bool = False
    """Keep those of a finished run; else they go once its weights are written and verified."""
    follow_weights: bool = False
    """Take the network from the weights, save the size and channels of its pictures."""
    resize: tuple[int, int] | None = None
    """Height and width with follow_weights; none: those of the weights."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Crop and flip."""
    max_bad: float = 0.1
    """Largest fraction of unreadable images before the run stops."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; channels and pixel scaling follow from the images or the weights."""

    def __post_init__(self) -> None:
        require_numbers(self, "a number above 0", "epochs", "minutes")
        require_numbers(self, "at least 1", "steps", "batch", "micro_batch", "checkpoint_every",
                        "threads", "save_every_steps", "log_every_steps")  # fmt: skip
        require_numbers(self, "at least 2", "keep")
        require_numbers(self, "at least 0, at most 1", "max_bad")
        require_numbers(self, "at least 0", "workers")
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        if self.steps is not None and self.minutes is not None:
            raise ConfigError("steps and minutes: got both, expected one of them; drop one")
        if self.resize is not None and not self.follow_weights:
            raise ConfigError(
                "resize: has no effect without follow_weights; give model.image_size instead"
            )
        objective = getattr(self, "objective", ObjectiveConfig())
        asked = dataclasses.replace(self.model, crop_pct=None), objective
        if self.follow_weights and asked != (ModelConfig(), ObjectiveConfig()):
            raise ConfigError(
                "model: has no effect with follow_weights, which takes the network from the "
                "weights; use --resize for another size, or --follow-weights no"
            )

    @property
    def fixed_micro_batch(self) -> int | None:
        """The micro-batch where it is a number; none: the whole batch, or not settled yet."""
        return self.micro_batch if isinstance(self.micro_batch, int) else None

    @property
    def half(self) -> Literal["bf16", "fp16"] | None:
        """Half precision of the forward pass; none: float32, as is auto until it is settled."""
        if self.precision == "auto" or self.precision == "float32":
            return None
        return self.precision

    @property
    def warmup_share(self) -> float:
        """Fraction of the run that is warm-up."""
        return min(1.0, self.optim.warmup_epochs / self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(FitConfig):
    """A pre-training run."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The hidden patches and what is predicted of them."""
    channels: int | None = None
    """Channels of the pictures; none: as the pictures have them."""
    measure_pixels: bool = False
    """Measure mean and deviation of the pictures even where they have 3 channels."""
    init_channels: ChannelRule | None = None
    """What --init does where channels differ: repeat, mean or zero; none: repeat."""
    views_per_decode: int = 1
    """Crops and masks of a picture each time it is decoded, in one batch; epochs stay as long."""
    start_size: tuple[int, int] | None = None
    """Height and width of the pictures in the first part of the run; none: as in the rest."""
    start_share: float = 0.6
    """Share of the run with pictures of start_size, where there is one."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(PretrainConfig, self).__post_init__()  # noqa: UP008
        self.objective.require_grid(self.model.grid)
        views, allowed = self.views_per_decode, f"at least 1 that divides the batch, {self.batch}"
        require(views >= 1 and self.batch % views == 0, "views_per_decode", views, allowed)
        require_numbers(self, "at least 1", "channels")
        require_numbers(self, "above 0, below 1", "start_share")
        if self.start_size is not None and not self.follow_weights:
            p, most = self.model.patch_size, self.model.image_size
            fits = all(
                0 < s <= m and s % p == 0 for s, m in zip(self.start_size, most, strict=True)
            )
            allowed = f"multiples of the patch, {p}, up to {most[0]} {most[1]}"
            require(fits, "start_size", self.start_size, allowed)
            self.objective.require_grid((self.start_size[0] // p, self.start_size[1] // p))


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Mixup and CutMix over the whole batch, and smoothed labels."""

    mixup: float = 0.0
    """Alpha of Mixup's Beta distribution; 0: no Mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution; 0: no CutMix."""
    switch: float = 0.5
    """Probability of CutMix instead of Mixup where both are on."""
    probability: float = 1.0
    """Probability that a batch is mixed at all."""
    smoothing: float = 0.0
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        require_numbers(self, "at least 0", "mixup", "cutmix", group="mix.")
        require_numbers(self, "at least 0, at most 1", "switch", "probability", group="mix.")
        require_numbers(self, "at least 0, below 1", "smoothing", group="mix.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(FitConfig):
    """Fine-tuning of a pre-trained encoder with a classifier (defaults: ViT-B/16 at 224)."""

    num_classes: int = 1000
    """Classes of the labels; follows from the data."""
    pool: Literal["mean", "cls"] = "mean"
    """What is classified: the mean of the patch tokens and a new norm, or the cls token."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it; 1: none."""
    drop_path: float = 0.0
    """Probability that the last block is skipped; rises linearly from 0 at the first."""
    train_blocks: float | None = None
    """Last blocks that are trained, 0.5 for the MLP of the last alone; none: everything."""
    ema: float | None = None
    """Decay of an average of the weights, which is what is evaluated; none: no average."""
    rand_augment: str | None = None
    """RandAugment in timm's terms, as in rand-m9-mstd0.5-inc1; none: none."""
    erase: float = 0.0
    """Probability of erasing a random rectangle with noise."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup, CutMix and smoothed labels."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(FinetuneConfig, self).__post_init__()  # noqa: UP008
        require_numbers(self, "at least 2", "num_classes")
        require_numbers(self, "above 0, at most 1", "layer_decay")
        require_numbers(self, "at least 0, below 1", "drop_path")
        require_numbers(self, "above 0, below 1", "ema")
        require_numbers(self, "at least 0, at most 1", "erase")
        blocks, depth = self.train_blocks, self.model.depth
        if self.follow_weights:
            depth = sys.maxsize  # asked again when the network is known
        if blocks is not None and blocks != 0.5 and not (blocks % 1 == 0 and 1 <= blocks <= depth):
            raise ConfigError(
                f"train_blocks: got {blocks:g}, expected 0.5 (the MLP of the last block) or a "
                f"whole number from 1 to {depth}; for 0 use mae probe linear"
            )


def resolve_crop_pct(
    model: ModelConfig, augment: AugmentConfig, *, of_weights: ModelConfig | None = None
) -> ModelConfig:
    """Set `crop_pct`, the fraction of an image that evaluation keeps, to store it in the weights.

    In this order: the model's own value; 1.0 if training uses whole images (`crop_scale` 1 1), so
    that evaluation does not crop; the value of the initial weights, if the image size is the
    same; the published value.

    Args:
        model: its `crop_pct` may be None.
        augment: the crops of training.
        of_weights: the network of the initial weights, if any.
    """
    if model.crop_pct is not None:
        return model
    crop_pct = published_crop_pct(model.image_size)
    if augment.crop_scale == (1, 1):
        crop_pct = 1.0
    elif of_weights is not None and of_weights.image_size == model.image_size:
        crop_pct = of_weights.crop_pct or crop_pct
    return dataclasses.replace(model, crop_pct=crop_pct)
