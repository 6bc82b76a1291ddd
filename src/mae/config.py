"""Runs and models described by frozen values, checked when they are made.

Numbers that follow from others (patches, peak learning rate) are properties or functions of
them, so that they cannot disagree. The field docstrings are the help texts of the command line.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Literal

from mae.errors import ConfigError, ShapeError

PixelDtype = Literal["uint8", "uint16", "float32"]
ChannelRule = Literal["repeat", "mean", "zero"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _require(fact: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001
    if not fact:
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelConfig:
    """How stored pixel values become the model's input: (value / full range - mean) / std."""

    dtype: PixelDtype = "uint8"
    """Type of the stored values; uint8 and uint16 are divided by their full range."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel after scaling to [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel after scaling to [0, 1]."""

    def __post_init__(self) -> None:
        _require(
            len(self.mean) == len(self.std) > 0,
            "pixels.mean and pixels.std",
            (self.mean, self.std),
            "one number per channel each",
        )
        _require(all(s > 0 for s in self.std), "pixels.std", self.std, "numbers above 0")

    @property
    def full_range(self) -> float:
        """The stored value that stands for 1.0."""
        return {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a masked autoencoder and what its pixels mean (defaults: ViT-B/16 at 224)."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    patch_size: int = 16
    """Edge of a square patch in pixels."""
    channels: int = 3
    """Channels of a picture."""
    width: int = 768
    """Encoder width."""
    depth: int = 12
    """Encoder blocks."""
    num_heads: int = 12
    """Encoder attention heads."""
    decoder_width: int = 512
    """Decoder width."""
    decoder_depth: int = 8
    """Decoder blocks."""
    decoder_heads: int = 16
    """Decoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of each MLP, as a multiple of the block's width."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm (published: 1e-6; transformers: 1e-12)."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    normalize_target: bool = True
    """Predict pixels normalised by the mean and deviation of their own patch."""
    target_eps: float = 1e-6
    """Added to a patch's variance before its root (published: 1e-6); more quiets blank patches."""
    pixels: PixelConfig = field(default_factory=PixelConfig)
    """Scaling of the stored pixel values."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "channels", "width", "depth", "num_heads", "decoder_width",
                     "decoder_depth", "decoder_heads"):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 1, name, value, "a whole number of at least 1")
        H, W = self.image_size
        if min(H, W) < 1 or H % self.patch_size or W % self.patch_size:
            raise ShapeError(
                f"image_size: got {H} x {W}, expected multiples of the patch size "
                f"{self.patch_size}; try {_nearest(H, self.patch_size)} x "
                f"{_nearest(W, self.patch_size)}"
            )
        for prefix, width, heads in (
            ("", self.width, self.num_heads),
            ("decoder_", self.decoder_width, self.decoder_heads),
        ):
            _require(width % 4 == 0, f"{prefix}width", width, "a multiple of 4 (positions)")
            _require(width % heads == 0, f"{prefix}width", width, f"a multiple of {heads} heads")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "a number above 0")
        _require(self.target_eps > 0, "target_eps", self.target_eps, "a number above 0")
        keep = num_keep(self.num_patches, self.mask_ratio)
        if not 0 < keep < self.num_patches:
            raise ConfigError(
                f"mask_ratio: {self.mask_ratio} of {self.num_patches} patches would keep {keep}; "
                "expected a ratio that keeps at least one patch and hides at least one"
            )
        if len(self.pixels.mean) != self.channels:
            raise ConfigError(
                f"pixels: got a mean for {len(self.pixels.mean)} channels, expected one for each "
                f"of the {self.channels} channels"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image, L."""
        return self.grid[0] * self.grid[1]

    @property
    def num_keep(self) -> int:
        """Patches the encoder sees in training, K."""
        return self.num_keep_of(self.num_patches)

    def num_keep_of(self, num_patches: int) -> int:
        """Patches the encoder sees of an image of another size.

        Raises:
            ShapeError: if the image is too small to show one and hide one.
        """
        keep = num_keep(num_patches, self.mask_ratio)
        if not 0 < keep < num_patches:
            raise ShapeError(
                f"picture size: a mask ratio of {self.mask_ratio} keeps {keep} of {num_patches} "
                "patches, expected at least one shown and one hidden; use larger pictures"
            )
        return keep

    @property
    def patch_values(self) -> int:
        """Pixel values of a patch, P."""
        return self.patch_size**2 * self.channels


def num_keep(num_patches: int, mask_ratio: float) -> int:
    """Count the visible patches: the published floor, guarded against float dust.

    `int(100 * (1 - 0.9))` is 9, since 1 - 0.9 is 0.0999...98; a ten-thousandth of a patch is
    added before the floor, so that 10 are kept (decision 0003).
    """
    return math.floor(num_patches * (1 - mask_ratio) + 1e-4)


def _nearest(size: int, patch_size: int) -> int:
    return max(patch_size, round(size / patch_size) * patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random crop and flip of each picture."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area a crop covers, smallest and largest; 1 1 keeps the whole."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, smallest and largest."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    scaled_decode: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 where crops stay large enough: faster, 36 to 39 dB."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        _require(
            0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "0 < low <= high <= 1"
        )
        low, high = self.crop_ratio
        _require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "0 < low <= high")
        _require(0 <= self.flip <= 1, "augment.flip", self.flip, "a probability")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then half a cosine, per iteration."""

    lr: float = 1.5e-4
    """Base learning rate per 256 images; the peak is lr * batch / 256."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    warmup_epochs: float = 40.0
    """Length of the warm-up; its share of the run is kept when --steps or --minutes is given."""
    warmup_start: float = 0.0
    """Share of the peak rate at which the warm-up starts."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.05
    """Decoupled weight decay; never on norms and biases."""
    decay_tokens: bool = True
    """Whether the cls and mask tokens are decayed (published PyTorch code: yes; OpenMMLab: no)."""
    clip_norm: float | None = None
    """Largest norm of the gradient; none: no clipping."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "a number above 0")
        _require(self.min_lr >= 0, "optim.min_lr", self.min_lr, "a number of at least 0")
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")
        _require(0 <= self.warmup_start <= 1, "optim.warmup_start", self.warmup_start, "0 to 1")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "0 <= beta < 1")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        clip = self.clip_norm
        _require(clip is None or clip > 0, "optim.clip_norm", clip, "above 0")

    def peak_lr(self, batch: int) -> float:
        """Scale the base rate linearly by the batch (paper, Table 8)."""
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
    micro_batch: int | None = None
    """Images of one forward and backward pass, some side by side on a CPU; none: the batch."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    seed: int = 0
    """Key of every random choice: initialisation, order, crops, flips, masks."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Arithmetic of the forward pass; the weights stay float32, and fp16 has its loss scaled."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best there is."""
    threads: int | None = None
    """Threads of the arithmetic; none: torch's own choice, recorded in the run."""
    workers: int | None = None
    """Processes that read pictures; auto: by cores and memory; 0: the training process."""
    save_every_steps: int = 500
    """Steps between checkpoints."""
    log_every_steps: int = 50
    """Steps between rows of the log."""
    keep: int = 3
    """Checkpoints kept."""
    follow_weights: bool = False
    """Take the network from the weights, save the size and channels of its pictures."""
    resize: tuple[int, int] | None = None
    """Height and width with follow_weights; none: those of the weights."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Crop and flip."""
    max_bad: float = 0.1
    """Largest share of unreadable pictures before the run stops."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "epochs", self.epochs, "a number above 0")
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "above 0")
        if self.steps is not None and self.minutes is not None:
            raise ConfigError("steps and minutes: got both, expected one of them; drop one")
        for name in ("batch", "save_every_steps", "log_every_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.keep >= 2, "keep", self.keep, "at least 2")
        _require(0 <= self.max_bad <= 1, "max_bad", self.max_bad, "a share from 0 to 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        for name in ("micro_batch", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(self.workers is None or self.workers >= 0, "workers", self.workers, "at least 0")

    @property
    def warmup_share(self) -> float:
        """Share of the run that is warm-up."""
        return min(1.0, self.optim.warmup_epochs / self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(FitConfig):
    """A pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; its channels and pixel scaling follow from the pictures."""
    channels: int | None = None
    """Channels of the pictures; none: as the pictures have them."""
    measure_pixels: bool = False
    """Measure mean and deviation of the pictures even where they have 3 channels."""
    init_channels: ChannelRule | None = None
    """What --init does where channels differ: repeat, mean or zero; none: repeat."""
    views_per_decode: int = 1
    """Crops and masks of a picture each time it is decoded, in one batch; epochs stay as long."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(PretrainConfig, self).__post_init__()  # noqa: UP008
        _require_one_network(self)
        views, allowed = self.views_per_decode, f"at least 1 that divides the batch, {self.batch}"
        _require(views >= 1 and self.batch % views == 0, "views_per_decode", views, allowed)
        _require(
            self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1"
        )


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
        for name in ("mixup", "cutmix"):
            _require(getattr(self, name) >= 0, f"mix.{name}", getattr(self, name), "at least 0")
        for name in ("switch", "probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"mix.{name}", value, "a probability")
        _require(0 <= self.smoothing < 1, "mix.smoothing", self.smoothing, "a share below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(FitConfig):
    """Fine-tuning of a pre-trained encoder with a classifier (defaults: ViT-B/16 at 224)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; channels and pixel scaling follow from the weights."""
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
        _require(self.num_classes >= 2, "num_classes", self.num_classes, "at least 2")
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "above 0, at most 1")
        _require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "a probability below 1")
        _require_one_network(self)
        _require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "between 0 and 1")
        _require(0 <= self.erase <= 1, "erase", self.erase, "a probability")
        blocks, depth = self.train_blocks, self.model.depth
        if self.follow_weights:
            depth = sys.maxsize  # asked again when the network is known
        if blocks is not None and blocks != 0.5 and not (blocks % 1 == 0 and 1 <= blocks <= depth):
            raise ConfigError(
                f"train_blocks: got {blocks:g}, expected 0.5 (the MLP of the last block) or a "
                f"whole number from 1 to {depth}; for 0 use mae probe linear"
            )


def _require_one_network(config: PretrainConfig | FinetuneConfig) -> None:
    """Refuse a network, or a size of its pictures, that is said where it has no effect."""
    if config.resize is not None and not config.follow_weights:
        raise ConfigError(
            "resize: has no effect without follow_weights; give model.image_size instead"
        )
    if config.follow_weights and config.model != ModelConfig():
        raise ConfigError(
            "model: has no effect with follow_weights, which takes the network from the "
            "weights; use --resize for another size, or --follow-weights no"
        )


def replace_model(config: PretrainConfig, **fields: object) -> PretrainConfig:
    """Copy a run with other fields of its model."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))  # type: ignore[arg-type]
