"""User options for loading weights whose files do not fully describe the network.

A setting that is neither in the file nor given here is assumed, and the assumption is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Take = Literal["model", "model_ema", "student", "teacher"]


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


OPTIONS: Mapping[str, str] = {
    "num_heads": "--heads",
    "decoder_heads": "--decoder-heads",
    "norm_eps": "--norm-eps",
    "image_size": "--grid",
    "mean": "--mean",
    "std": "--std",
    "normalize_target": "--normalize-target",
    "pool": "--pool",
}
"""Command-line option that overrides the assumed value of a field."""


def network_fields(given: Given) -> dict[str, Any]:
    """Return the given settings by `ModelConfig` field name, and mean, std and grid."""
    said = {name: value for name, value in given.items() if value is not None and name != "take"}
    if "heads" in said:
        said["num_heads"] = said.pop("heads")
    return said
