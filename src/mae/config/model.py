"""Model and pixel configuration: frozen, validated dataclasses.

Derived values, such as the number of patches, are properties or functions, so that they cannot
disagree with the fields. The field docstrings are the help texts of the command line.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, field
from typing import Literal

from mae.errors import ConfigError, ShapeError

PixelDtype = Literal["uint8", "uint16", "float32"]
ChannelRule = Literal["repeat", "mean", "zero"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LIMIT = re.compile(r"(above|at least|at most|below) (\d+)")
_LIMITS = {"above": operator.gt, "at least": operator.ge, "at most": operator.le,
           "below": operator.lt}  # fmt: skip


def require(fact: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001
    """Validate a field: raise unless `fact` holds, with the allowed values in the message.

    Raises:
        ConfigError: if `fact` is false.
    """
    if not fact:
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")


def require_numbers(config: object, allowed: str, *names: str, group: str = "") -> None:
    """Validate fields by a text such as "above 0, at most 1"; None and words are left out.

    Args:
        config: its fields hold numbers or tuples of numbers.
        allowed: limits that every number has to keep, and the message where one does not.
        names: the fields.
        group: prefix of the names in the message.

    Raises:
        ConfigError: if a number is outside.
    """
    limits = [(_LIMITS[word], float(bound)) for word, bound in _LIMIT.findall(allowed)]
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        numbers = [number for number in values if isinstance(number, (int, float))]
        fits = all(holds(number, bound) for holds, bound in limits for number in numbers)
        require(fits, f"{group}{name}", value, allowed)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelConfig:
    """How stored pixel values become the model's input: (value / full range - mean) / std."""

    dtype: PixelDtype = "uint8"
    """Type of the stored values; uint8 and uint16 are divided by their full range."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel after scaling to [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Std of each channel after scaling to [0, 1]."""
    tiff_pages: bool = False
    """Whether the channels are grey pages of a TIFF, as --channels asked."""

    def __post_init__(self) -> None:
        same, both = len(self.mean) == len(self.std) > 0, (self.mean, self.std)
        require(same, "pixels.mean and pixels.std", both, "one number per channel each")
        require_numbers(self, "numbers above 0", "std", group="pixels.")

    @property
    def full_range(self) -> float:
        """The stored value that stands for 1.0."""
        return {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a masked autoencoder and what its pixels mean (defaults: ViT-B/16 at 224)."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    crop_pct: float | None = None
    """Evaluation resizes to image_size / crop_pct and crops the centre; none: as in training."""
    patch_size: int = 16
    """Edge of a square patch in pixels."""
    channels: int = 3
    """Channels of an image."""
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
    pixels: PixelConfig = field(default_factory=PixelConfig)
    """Scaling of the stored pixel values."""

    def __post_init__(self) -> None:
        require_numbers(self, "at least 1", "patch_size", "channels", "width", "depth",
                        "num_heads", "decoder_width", "decoder_depth", "decoder_heads")  # fmt: skip
        require_numbers(self, "above 0, at most 1", "crop_pct")
        require_numbers(self, "a number above 0", "norm_eps")
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
            require(width % 4 == 0, f"{prefix}width", width, "a multiple of 4 (positions)")
            require(width % heads == 0, f"{prefix}width", width, f"a multiple of {heads} heads")
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
    def patch_values(self) -> int:
        """Pixel values of a patch, P."""
        return self.patch_size**2 * self.channels


def published_crop_pct(image_size: tuple[int, int]) -> float:
    """Return the fraction of an image that the published evaluation keeps: 224 / 256, or all.

    Args:
        image_size: input height and width of the network.

    Source: published code, util/datasets.py: 224 / 256 up to 224 pixels, 1.0 above.
    """
    return 224 / 256 if min(image_size) <= 224 else 1.0


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Count the hidden units of an MLP: the published floor, guarded against rounding errors.

    `int(448 * (488 / 448))` is 487; 1e-6 is added before the floor, so that a ratio computed from
    two whole numbers gives back the hidden width.
    """
    return math.floor(width * mlp_ratio + 1e-6)


def _nearest(size: int, patch_size: int) -> int:
    return max(patch_size, round(size / patch_size) * patch_size)


def refuse_without_effect(here: str, there: str, **given: object) -> None:
    """Refuse options that were given and have no effect.

    Raises:
        ConfigError: for the first value that is not None.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name}: has no effect on {here}, expected with {there}; drop it")
