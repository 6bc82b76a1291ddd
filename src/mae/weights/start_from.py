"""The network of a run that starts from weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

from mae.config.model import refuse_without_effect
from mae.config.run import (
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    resolve_crop_pct,
)
from mae.config.sizes import SIZES
from mae.errors import ConfigError, WeightsError
from mae.runs.directory import differences
from mae.weights.given import Given
from mae.weights.infer_config import NetworkConfig, infer_config
from mae.weights.read import RawWeights, read_weights

_ENCODER_SIZES = ("patch_size", "width", "depth", "num_heads", "mlp_ratio")


def require_init(config: PretrainConfig, init: str | Path | None, **given: Unpack[Given]) -> None:
    """Reject settings of pre-training that need initial weights if none are given.

    Raises:
        ConfigError: with the option to add or to drop.
    """
    if init is not None:
        return
    if config.follow_weights:
        raise ConfigError(
            "init: expected --init, the weights or run whose network this recipe takes; to train "
            "a new network use the recipe folder"
        )
    if config.init_channels is not None:
        raise ConfigError("init_channels: has no effect without --init; drop it")
    refuse_without_effect("a new network", "--init", **given)


def config_from_weights(
    config: PretrainConfig | FinetuneConfig,
    path: str | Path,
    *,
    num_classes: int = 0,
    **given: Unpack[Given],
) -> NetworkConfig:
    """Return the network of a run from weights, with mask and target of their pre-training.

    With `follow_weights`, all fields are those of the weights, except the image size where
    `resize` sets it, `crop_pct` (see `resolve_crop_pct`), and the decoder, which follows from the
    encoder's size if pre-training starts from weights without one. Otherwise, for fine-tuning,
    only channels, pixel scaling and norm eps are.

    Args:
        config: the run.
        path: any path that `load_encoder` accepts.
        num_classes: number of classes of the data, for fine-tuning.
        given: settings that the weights do not say, see `Given`.

    Raises:
        WeightsError: for weights that cannot be read, whose network cannot be inferred or differs
            from the recipe's, or that have a head with more classes than the data.
    """
    raw = read_weights(path, **given)
    if isinstance(config, FinetuneConfig):
        _require_classes(raw, num_classes)
        raw = raw.encoder()
    stored = infer_config(raw)
    if not config.follow_weights:
        return stored._replace(model=_with_pixels_of(stored.model, config.model, where=raw.path))
    size = config.resize or stored.model.image_size
    asked = {"image_size": size, "crop_pct": config.model.crop_pct}
    if isinstance(config, PretrainConfig) and not raw.metadata.model and not raw.has_decoder:
        asked |= _decoder_of(stored.model)
    model = dataclasses.replace(stored.model, **asked)  # type: ignore[arg-type]
    return stored._replace(model=resolve_crop_pct(model, config.augment, of_weights=stored.model))


def _require_classes(raw: RawWeights, num_classes: int) -> None:
    """Reject a classifier of more classes than the data has."""
    if (known := len(raw.tensors.get("head.bias", ()))) > num_classes:
        raise WeightsError(
            f"{raw.path}: its head has {known} classes, the data {num_classes}; give data of the "
            "same classes, or pre-trained weights, which have no head"
        )


def _with_pixels_of(stored: ModelConfig, model: ModelConfig, *, where: Path) -> ModelConfig:
    """Take channels, pixel scaling and norm eps from the weights of the same network."""
    of_weights, of_run = ({n: getattr(c, n) for n in _ENCODER_SIZES} for c in (stored, model))
    if of_weights != of_run:
        raise WeightsError(
            f"{where}: holds another network than the recipe's: "
            f"{differences(of_weights, of_run).replace('run has', 'weights have')}; choose the "
            "recipe of its size, or finetune-folder, which takes any"
        )
    return dataclasses.replace(
        model, channels=stored.channels, pixels=stored.pixels, norm_eps=stored.norm_eps
    )


def _decoder_of(model: ModelConfig) -> dict[str, int]:
    """Return the decoder fields for an encoder of a known size; empty for the default."""
    for size in SIZES.values():
        if (size["width"], size["depth"]) == (model.width, model.depth):
            return {name: value for name, value in size.items() if name.startswith("decoder_")}
    return {}
