"""User options for loading weights whose files do not fully describe the network.

A setting that is neither in the file nor given here is assumed, and the assumption is printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from mae.config.kinds import ConfigT
from mae.errors import ConfigError
from mae.recipes.custom import build_config, name_fields
from mae.weights.io.hub import PREFIX

Take = Literal["model", "model_ema", "student", "teacher"]

HeadPool = Literal["mean", "cls"]
"""Pooled feature that a classifier's head takes."""

Target = Literal["facebook", "timm", "huggingface", "dinov2", "mae"]
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


def configure(
    recipe: str | ConfigT, cls: type[ConfigT], keywords: Mapping[str, Any], *, others: Iterable[str]
) -> tuple[ConfigT, Given]:
    """Return the configuration of a run from keywords, and those that are of `Given`.

    Args:
        recipe: name of a recipe, or a configuration.
        cls: type of the configuration.
        keywords: fields of the recipe, see `name_fields`, and settings of weights.
        others: other keywords of the call, to suggest for a wrong one.

    Raises:
        ConfigError: for an unknown keyword, with the closest one; for a wrong value.
    """
    given = {name: value for name, value in keywords.items() if name in Given.__annotations__}
    rest = {name: value for name, value in keywords.items() if name not in given}
    fields = name_fields(cls, rest, others=[*others, *Given.__annotations__])
    return build_config(recipe, cls, fields=fields), cast(Given, given)


def path_of(weights: object, *, name: str) -> str:
    """Return the path of weights that a run records, and has to find again when it resumes.

    Args:
        weights: a path, `hf:owner/name`, or a finished run.
        name: of the argument, for the message.

    Raises:
        ConfigError: for a network in memory.
    """
    if isinstance(weights, str | os.PathLike):
        return os.fspath(weights)
    raise ConfigError(
        f"{name}: got {type(weights).__name__}, expected a path, a run or hf:OWNER/NAME; write a "
        "network in memory to a folder first: mae.save(network, FOLDER)"
    )


def lasting(weights: str) -> str:
    """Name weights so that they are found from another working directory."""
    return weights if weights.startswith(PREFIX) else str(Path(weights).resolve())


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
