"""User options for loading weights whose files do not fully describe the network.

A setting that is neither in the file nor given here is assumed, and the assumption is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

Take = Literal["model", "model_ema", "student", "teacher"]

HeadPool = Literal["mean", "cls"]
"""Pooled feature that a classifier's head takes."""

Target = Literal["facebook", "timm", "huggingface", "mae"]
"""Formats that can be written."""


class Given(TypedDict, total=False):
    """Keyword arguments of every function that loads weights; None means not given."""

    heads: int | None
    """Encoder heads, for weights that do not store them; none: by their width."""
    decoder_heads: int | None
    """Decoder heads, for weights that do not store them; none: by their width."""
    norm_eps: float | None
    """Eps of the layer norms, for weights that do not store it; none: 1e-6."""
    grid: tuple[int, int] | None
    """Patches along height and width, for weights that do not store them; none: a square."""
    mean: tuple[float, ...] | None
    """Pixel mean per channel in [0, 1], for weights that do not store it; none: ImageNet's."""
    std: tuple[float, ...] | None
    """Pixel std per channel in [0, 1], for weights that do not store it; none: ImageNet's."""
    normalize_target: bool | None
    """Whether the decoder predicts pixels normalised per patch, for weights that do not say."""
    take: Take | None
    """Network to load from a file with several; none: model."""


class LoadOptions(Given, total=False):
    """`Given`, and the setting that overrides the file."""

    crop_pct: float | None
    """Fraction of an image that evaluation keeps, see `ModelConfig`."""


OPTIONS: Mapping[str, str] = {
    "num_heads": "--heads",
    "decoder_heads": "--decoder-heads",
    "norm_eps": "--norm-eps",
    "image_size": "--grid",
    "normalize_target": "--normalize-target",
    "mean": "--mean",
    "std": "--std",
    "activation": "no other is possible",
    "pool": "--pool",
}
"""Command-line option that overrides what is assumed of a network."""
