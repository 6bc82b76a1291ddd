"""Choose `folder` and `finetune-folder` for the images, the device and the record of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from mae.config.kinds import ConfigT
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import from_dict
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import Source
from mae.data.survey import side_and_channels
from mae.data.types import Log
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.recipes import folder_tuning
from mae.recipes.folder import CHOSEN, NAME, Facts, choose, with_fields
from mae.weights.given import Given
from mae.weights.start_from import config_from_weights


def choose_config(
    config: PretrainConfig,
    source: Source,
    *,
    kept: Collection[str] | None,
    from_weights: bool = False,
    begun: Mapping[str, Any] | None = None,
    device: str | None = None,
    log: Log,
) -> PretrainConfig:
    """Return a configuration with what the recipe `folder` chooses for the images.

    Args:
        config: the recipe with the changes of the user.
        source: the images.
        kept: dotted names of the fields that the user set; None: it is another recipe, which is
            returned unchanged.
        from_weights: whether the run starts from weights.
        begun: run.json of the run to resume; if it is of this recipe, its choice is kept.
        device: cpu, cuda or mps; None: that of the configuration on this machine.
        log: called with each reason, one line.

    Raises:
        MaeError: for images that cannot be read or are too small; for a device that is not here.
    """
    if kept is None or {*CHOSEN} <= {*kept}:
        return config
    if begun is not None and begun.get("recipe") == NAME and not from_weights:
        return _as_begun(config, begun, {*CHOSEN} - {*kept})
    side, channels = side_and_channels(source)
    facts = Facts(
        images=len(source),
        side=side,
        channels=config.channels or channels,
        device=device or choose_device(config.device).type,
        minutes=config.minutes,
        from_weights=from_weights,
    )
    choice = choose(facts, config, kept=kept)
    for reason in choice.reasons:
        log(reason)
    return choice.config


def choose_tuning_config(
    config: FinetuneConfig,
    source: Source,
    *,
    kept: Collection[str] | None,
    weights: str | Path | None,
    begun: Mapping[str, Any] | None = None,
    given: Given | None = None,
    log: Log,
) -> FinetuneConfig:
    """Return a configuration with what the recipe `finetune-folder` chooses for the images.

    Fine-tuning of some blocks (`train_blocks`) is left as it is.

    Args:
        config: the recipe with the changes of the user.
        source: the training images.
        kept: see `choose_config`.
        weights: the weights to start from; None: a new network.
        begun: run.json of the run to resume; if it is of this recipe, its choice is kept.
        given: settings that the weights do not say.
        log: called with the choice, one line.

    Raises:
        WeightsError: for weights that cannot be read, or with another head.
    """
    if kept is None or config.train_blocks is not None or {*folder_tuning.CHOSEN} <= {*kept}:
        return config
    if begun is not None and begun.get("recipe") == folder_tuning.NAME:
        return _as_begun(config, begun, {*folder_tuning.CHOSEN} - {*kept})
    model, classes = config.model, len(source.class_names)
    if weights is not None:
        model = config_from_weights(config, weights, num_classes=classes, **(given or {})).model
    config, reason = folder_tuning.choose_tuning(len(source), model.width, config, kept=kept)
    log(reason)
    return config


def _as_begun(config: ConfigT, begun: Mapping[str, Any], names: Collection[str]) -> ConfigT:
    """Return a configuration with some fields as in the run to resume."""
    before = from_dict(type(config), begun["config"], where="run.json")
    return with_fields(config, {name: attrgetter(name)(before) for name in names})


def choose_for_data(
    config: PretrainConfig,
    data: Data,
    *,
    kept: Collection[str] | None,
    from_weights: bool = False,
    quiet: bool = False,
) -> PretrainConfig:
    """Return the configuration that a new run on data has, for a verb that shows or measures it."""
    if kept is None:
        return config
    with Progress(quiet=quiet) as progress:
        log, source = progress.note, open_source(data)
        return choose_config(config, source, kept=kept, from_weights=from_weights, log=log)
