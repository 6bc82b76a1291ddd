"""Configure a pre-training run from initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from mae.config.model import refuse_without_effect
from mae.config.run import ModelConfig, PretrainConfig, settle_crop_pct
from mae.config.sizes import SIZES
from mae.errors import ConfigError
from mae.weights.given import Given
from mae.weights.infer_config import infer_config
from mae.weights.read import read_weights


def require_init(config: PretrainConfig, init: str | Path | None, **given: Unpack[Given]) -> None:
    """Reject settings that need initial weights if none are given.

    Raises:
        ConfigError: with the option to add or to drop.
    """
    if init is None and config.follow_weights:
        raise ConfigError(
            "init: expected --init, weights or a run, which this recipe takes its network from; "
            "to start anew use the recipe folder"
        )
    if init is None and config.init_channels is not None:
        raise ConfigError("init_channels: has no effect without --init; drop it")
    if init is None:
        refuse_without_effect("a new network", "--init", **given)


def follow(
    config: PretrainConfig,
    init: str | Path,
    *,
    say: Callable[[str], None],
    **given: Unpack[Given],
) -> PretrainConfig:
    """Set the network of a run from weights.

    If the weights have no decoder, the run gets the decoder for this encoder size, or that of
    ViT-B.

    Args:
        config: a config with `follow_weights`.
        init: any path that `load_encoder` accepts.
        say: called with each assumption.
        given: settings that the weights do not say, see `Given`.

    Returns:
        A config with explicit network fields, so that run.json alone reproduces the run.

    Raises:
        WeightsError: for weights that cannot be read or whose network cannot be inferred.
    """
    raw = read_weights(init, take=given.get("take"))
    stored, objective, notes = infer_config(raw, **given)
    for note in notes:
        say(note)
    decoder = {} if raw.metadata.model or raw.has_decoder else _decoder_of(stored)
    size = config.resize or stored.image_size
    asked = {"image_size": size, "crop_pct": config.model.crop_pct}
    model = dataclasses.replace(stored, **asked, **decoder)  # type: ignore[arg-type]
    model = settle_crop_pct(model, config.augment, of_weights=stored)
    return dataclasses.replace(
        config, model=model, objective=objective, follow_weights=False, resize=None
    )


def _decoder_of(model: ModelConfig) -> dict[str, int]:
    """Return the decoder fields for an encoder of a known size; empty for the default."""
    for size in SIZES.values():
        if (size["width"], size["depth"]) == (model.width, model.depth):
            return {name: value for name, value in size.items() if name.startswith("decoder_")}
    return {}
