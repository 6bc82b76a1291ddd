"""Configuration of training runs: frozen, validated dataclasses.

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
    """Random crop and flip of each image."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest fraction of the image's area in a crop; 1 1: the whole image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    crop_clip: bool = False
    """Clip the first drawn crop to the image (published linear probe) instead of drawing again."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    scaled_decode: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the crop stays large enough: faster, 36 to 39 dB."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "0 < low <= high")
        require_numbers(self, "at least 0, at most 1", "flip", group="augment.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its schedule: linear warm-up, then the decay, per step."""

    name: Literal["adamw", "muon", "lars"] = "adamw"
    """Optimizer; muon (beyond the paper): Muon for the matrices of blocks, AdamW for the rest."""
    lr: float = 1.5e-4
    """Base learning rate per 256 images; the peak is lr * batch / 256."""
    decay: Literal["cosine", "linear", "steps"] = "cosine"
    """Fall of the learning rate after the warm-up: half a cosine, a line (poly of power 1), or to a
    tenth at each of the milestones."""
    milestones: tuple[float, ...] = ()
    """Fractions of the run, in ascending order, for decay steps."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    min_lr_scaled: bool = True
    """Whether layer decay scales min_lr as well (published PyTorch code: yes; OpenMMLab: no)."""
    warmup_epochs: float = 40.0
    """Length of the warm-up; with --steps or --minutes it stays the same fraction of the run."""
    warmup_start: float = 0.0
    """Fraction of the peak rate at which the warm-up starts."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment; lars: the first is its momentum."""
    eps: float = 1e-8
    """Added to the root of the second moment; no effect on lars."""
    weight_decay: float = 0.05
    """Weight decay, decoupled except for lars."""
    decay_tokens: bool = True
    """Whether the cls and mask tokens are decayed (published PyTorch code: yes; OpenMMLab: no)."""
    decay_biases: bool = False
    """Whether biases are decayed (ViTDet: yes; others: no)."""
    decay_norms: bool = False
    """Whether norms are decayed (ViTDet with ViT-H: yes; others: no)."""
    clip_norm: float | None = None
    """Largest norm of the gradient; none: no clipping."""

    def __post_init__(self) -> None:
        check = partial(require_numbers, self, group="optim.")
        check("a number above 0", "lr", "clip_norm")
        check("at least 0", "min_lr", "warmup_epochs", "weight_decay")
        check("at least 0, at most 1", "warmup_start")
        check("at least 0, below 1", "betas")
        check("above 0, below 1", "milestones")
        marks = self.milestones
        fits = sorted({*marks}) == [*marks] and bool(marks) == (self.decay == "steps")
        allowed = "fractions in ascending order with decay steps, none otherwise"
        require(fits, "optim.milestones", marks, allowed)

    def peak_lr(self, batch: int) -> float:
        """Scale the base learning rate linearly by the batch (He et al. 2021, Table 8)."""
        return self.lr * batch / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Fields of every training run: length, batch, optimizer, intervals, machine, network."""

    epochs: float = 400.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    minutes: float | None = None
    """Training time, instead of epochs: converted to steps once, by the measured rate."""
    batch: int = 4096
    """Images of an optimizer step, whatever the micro-batch."""
    micro_batch: int | Literal["auto"] | None = None
    """Images of a forward and backward pass; auto: as many as fit; none: the whole batch."""
    checkpoint_every: int | None = None
    """Blocks of a segment that keeps only its input; the backward pass recomputes the rest."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    seed: int = 0
    """Key of every random draw: initial weights, order, crops, flips, masks."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Precision of the forward pass; weights stay float32. auto: bf16 on a device that has it."""
    compile: bool | None = None
    """Compile the forward and backward pass; micro-batches then run in turn. none: on a GPU."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several ranks: ddp, each holds the model; fsdp, each a part; auto: ddp where it fits."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best available."""
    threads: int | None = None
    """Threads of torch; none: its default, recorded in the run."""
    workers: int | None = None
    """Processes that read images; auto: by cores and memory; 0: the training process itself."""
    save_every_steps: int = 500
    """Steps between checkpoints."""
    async_save: bool = False
    """Write checkpoints in a thread while training goes on; takes host memory for a copy."""
    log_every_steps: int | None = None
    """Steps between rows of the log, after the first step; none: about 200 rows in all."""
    keep: int = 2
    """Number of last checkpoints kept during the run."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of a finished run; else they go once its weights are verified."""
    follow_weights: bool = False
    """Take the network from the weights; size and channels of the images may differ."""
    resize: tuple[int, int] | None = None
    """Image height and width with follow_weights; none: those of the weights."""
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
            raise ConfigError("resize: has no effect without follow_weights; give model.image_size")
        objective = getattr(self, "objective", ObjectiveConfig())
        asked = dataclasses.replace(self.model, crop_pct=None), objective
        if self.follow_weights and asked != (ModelConfig(), ObjectiveConfig()):
            raise ConfigError(
                "model: has no effect with follow_weights; use --resize, or --follow-weights no"
            )

    @property
    def fixed_micro_batch(self) -> int | None:
        """The micro-batch if it is a number; None: the whole batch, or not resolved yet."""
        return self.micro_batch if isinstance(self.micro_batch, int) else None

    @property
    def half(self) -> Literal["bf16", "fp16"] | None:
        """Half precision of the forward pass; None: float32, or auto that is not resolved yet."""
        if self.precision == "auto" or self.precision == "float32":
            return None
        return self.precision

    def trained_images(self, count: int) -> int:
        """Return how many of `count` images are trained on."""
        return count

    @property
    def warmup_share(self) -> float:
        """Fraction of the run that is warm-up."""
        return min(1.0, self.optim.warmup_epochs / self.epochs)


HELD_OUT_LEAST, HELD_OUT_MOST = 100, 64
"""No image of fewer is held out, and at most so many are: as many as a health check reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(FitConfig):
    """A pre-training run."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Mask and target of pre-training."""
    channels: int | None = None
    """Channels to read; none: those of the images."""
    measure_pixels: bool = False
    """Measure mean and std of the pixels even of images with 3 channels."""
    init_channels: ChannelRule | None = None
    """How --init adapts weights with other channels: repeat, mean or zero; none: repeat."""
    views_per_decode: int = 1
    """Crops and masks of an image each time it is decoded, in one batch; epochs stay as long."""
    start_size: tuple[int, int] | None = None
    """Image height and width in the first part of the run; none: as in the rest."""
    start_share: float = 0.6
    """Fraction of the run with images of start_size, where it is given."""
    held_out: float = 0.0
    """Fraction of the images, at most 64, for the health check alone; none of under 100 images."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(PretrainConfig, self).__post_init__()  # noqa: UP008
        self.objective.require_grid(self.model.grid)
        views, allowed = self.views_per_decode, f"at least 1 that divides the batch, {self.batch}"
        require(views >= 1 and self.batch % views == 0, "views_per_decode", views, allowed)
        require_numbers(self, "at least 1", "channels")
        require_numbers(self, "above 0, below 1", "start_share")
        require_numbers(self, "at least 0, below 1", "held_out")
        if self.start_size is not None and not self.follow_weights:
            p, most = self.model.patch_size, self.model.image_size
            sides = zip(self.start_size, most, strict=True)
            fits = all(0 < s <= m and s % p == 0 for s, m in sides)
            allowed = f"multiples of the patch, {p}, up to {most[0]} {most[1]}"
            require(fits, "start_size", self.start_size, allowed)
            self.objective.require_grid((self.start_size[0] // p, self.start_size[1] // p))

    def trained_images(self, count: int) -> int:
        """Return how many of `count` images are trained on: all but the held-out ones."""
        if count < HELD_OUT_LEAST:
            return count
        return count - min(HELD_OUT_MOST, round(self.held_out * count))


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
    """Fraction of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        require_numbers(self, "at least 0", "mixup", "cutmix", group="mix.")
        require_numbers(self, "at least 0, at most 1", "switch", "probability", group="mix.")
        require_numbers(self, "at least 0, below 1", "smoothing", group="mix.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig(FitConfig):
    """Fields of every run that trains a pre-trained encoder with a head on labels."""

    num_classes: int = 1000
    """Number of classes; follows from the data."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the block before it; 1: none."""
    drop_path: float = 0.0
    """Probability that the last block is skipped; rises linearly from 0 at the first."""
    train_blocks: float | None = None
    """Last blocks to train, 0.5: only the MLP of the last block; none: the whole network."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(TransferConfig, self).__post_init__()  # noqa: UP008
        require_numbers(self, "above 0, at most 1", "layer_decay")
        require_numbers(self, "at least 0, below 1", "drop_path")


def require_train_blocks(config: TransferConfig, least: int, otherwise: str = "") -> None:
    """Require that `train_blocks` is None, 0.5 or a whole number from `least` to the depth.

    Raises:
        ConfigError: for another number; the message ends with `otherwise`.
    """
    blocks = config.train_blocks
    # With follow_weights the depth is checked once the network is known.
    most = sys.maxsize if config.follow_weights else config.model.depth
    fits = blocks in (None, 0.5) or (blocks % 1 == 0 and least <= blocks <= most)
    upper = "" if config.follow_weights else f" to {most}"
    some = f"0.5 (MLP of the last block) or a whole number from {least}{upper}"
    require(fits, "train_blocks", blocks, some + otherwise)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(TransferConfig):
    """Fine-tuning of a pre-trained encoder with a classifier (defaults: ViT-B/16 at 224)."""

    pool: Literal["mean", "cls"] = "mean"
    """Classified feature: the mean of the patch tokens with a new norm, or the cls token."""
    ema: float | None = None
    """Decay of the moving average of the weights that is evaluated; none: no average."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, as in rand-m9-mstd0.5-inc1; none: off."""
    erase: float = 0.0
    """Probability of erasing a random rectangle with noise."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup, CutMix and smoothed labels."""

    def __post_init__(self) -> None:
        super(FinetuneConfig, self).__post_init__()  # noqa: UP008
        require_numbers(self, "at least 2", "num_classes")
        require_numbers(self, "above 0, below 1", "ema")
        require_numbers(self, "at least 0, at most 1", "erase")
        require_train_blocks(self, 1, "; for 0 use mae probe linear")


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
