"""Start a run from weights: its network, and its initial model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch

from mae.config.detect import DetectConfig
from mae.config.model import refuse_without_effect
from mae.config.run import (
    ChannelRule,
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    PretrainConfig,
    TransferConfig,
    resolve_crop_pct,
)
from mae.config.segment import SegmentConfig
from mae.config.sizes import SIZES
from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.dense.segmenter import Segmenter
from mae.model.encoder import Encoder
from mae.runs.directory import differences
from mae.weights.adapt_shape import resize_weights
from mae.weights.given import OPTIONS, Given
from mae.weights.infer_config import OBJECTIVE, NetworkConfig, infer_config, infer_fields, notes_on
from mae.weights.load import Loaded, group_notes, require_plain_encoder
from mae.weights.load_backbone import windows_of
from mae.weights.load_state import load_strict
from mae.weights.read import Source, read_weights

# Model fields that a new run may change when it starts from weights.
_FREE = {"image_size", "channels", "pixels", "crop_pct", *OBJECTIVE}

# Options of a run that set fields unknown from the weights.
_OF_RUN = {
    "num_heads": "--model.num-heads",
    "decoder_heads": "--model.decoder-heads",
    "norm_eps": "--model.norm-eps",
}

# Starts of the names of tensors that a dense task does not take with an encoder.
OF_DENSE = ("encoder.norm.", "encoder.relative.", "encoder.layer_scale.")

# Model fields in which weights must equal a recipe that fine-tunes them.
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
    config: PretrainConfig | TransferConfig,
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
    if not isinstance(config, DetectConfig):
        require_plain_encoder(raw)
    if isinstance(config, TransferConfig):
        known = len(raw.tensors.get("head.bias", ()))
        if isinstance(config, FinetuneConfig) and known > num_classes:
            raise WeightsError(
                f"{raw.path}: its head has {known} classes, the data {num_classes}; give data of "
                "the same classes, or pre-trained weights, which have no head"
            )
        raw = raw.encoder()
    stored = infer_config(raw)
    windows = windows_of(raw, stored.model) if isinstance(config, DetectConfig) else None
    if not config.follow_weights:
        sizes = {name: getattr(stored.model, name) for name in _ENCODER_SIZES}
        any_size = {FinetuneConfig: "finetune", SegmentConfig: "segment"}.get(
            type(config), "detect"
        )
        advice = f"choose the recipe of its size, or {any_size}-folder, which takes any"
        _require_network(raw.path, sizes, config.model, advice=advice)
        own = {name: getattr(stored.model, name) for name in ("channels", "pixels", "norm_eps")}
        return stored._replace(model=dataclasses.replace(config.model, **own))
    size, p = config.resize or stored.model.image_size, stored.model.patch_size
    if windows is not None and windows.grid is not None and config.resize is None:
        size = windows.grid[0] * p, windows.grid[1] * p
    asked = {"image_size": size, "crop_pct": config.model.crop_pct}
    if isinstance(config, PretrainConfig) and not raw.metadata.model and not raw.has_decoder:
        asked |= _decoder_of(stored.model)
    model = dataclasses.replace(stored.model, **asked)  # type: ignore[arg-type]
    return stored._replace(model=resolve_crop_pct(model, config.augment, of_weights=stored.model))


def _require_network(
    path: Path, stored: Mapping[str, Any], config: ModelConfig, *, advice: str
) -> None:
    """Reject weights that differ from a run in these fields of the network."""
    asked = {name: getattr(config, name) for name in stored}
    if stored != asked:
        found = differences(stored, asked).replace("run has", "weights have")
        raise WeightsError(f"{path}: holds another network: {found}; {advice}")


def _decoder_of(model: ModelConfig) -> dict[str, int]:
    """Return the decoder fields for an encoder of a known size; empty for the default."""
    for size in SIZES.values():
        if (size["width"], size["depth"]) == (model.width, model.depth):
            return {name: value for name, value in size.items() if name.startswith("decoder_")}
    return {}


def initial_model(
    path: Source,
    config: ModelConfig,
    *,
    objective: ObjectiveConfig | None = None,
    seed: int = 0,
    init_channels: ChannelRule | None = None,
    followed: bool = False,
    **given: Unpack[Given],
) -> Loaded[MaskedAutoencoder]:
    """Create the initial model of pre-training from weights, with a new decoder if there is none.

    Args:
        path: as for `load`.
        config: the model to train. Its sizes must match the weights; image size and channels may
            differ.
        objective: mask and target of the run; those of the weights may differ.
        seed: seed of a new decoder.
        init_channels: how to adapt weights with another number of channels, see `resize_weights`.
        followed: whether the config was made from these weights and its assumptions are already
            reported. Otherwise, fields that the weights do not say are taken from the config.
        given: see `load`.

    Raises:
        WeightsError: if the weights belong to another model.
        ConfigError: for a channel rule that has no effect or cannot be applied.
    """
    raw = read_weights(path, **given)
    require_plain_encoder(raw)
    known = infer_fields(raw)
    free = _FREE | {*known.assumed}
    own = {name: value for name, value in known.fields.items() if name not in free}
    _require_network(raw.path, own, config, advice="give the new run the model of the weights")
    notes = list[str]()
    if not followed:
        fields = known.fields | {name: getattr(config, name) for name in _OF_RUN}
        shown = {*_OF_RUN, "image_size", "activation"}
        known = known._replace(fields=fields, assumed=tuple(n for n in known.assumed if n in shown))
        notes = notes_on(raw, known, options={**OPTIONS, **_OF_RUN})
    tensors, changes = resize_weights(raw.tensors, known.fields, to=config, rule=init_channels)
    raw = raw._replace(tensors=tensors)
    model = create(config, objective=objective, seed=seed)
    load_strict(model.encoder, raw, prefix="encoder.")
    groups = group_notes(raw, config, ("encoder", "decoder"))
    if raw.has_decoder:
        load_strict(model.decoder, raw, prefix="decoder.")
    else:
        groups.insert(1, f"decoder: not in {raw.path}, starts fresh")
    return Loaded(model, [*notes, *changes, *groups])


def initial_classifier(
    path: Source | None, config: FinetuneConfig, **given: Unpack[Given]
) -> Loaded[Classifier]:
    """Create the initial classifier of fine-tuning: a new head on loaded or new encoder weights.

    Args:
        path: as for `load_encoder`; None initialises the encoder from the seed.
        config: its `model` must come from `config_from_weights` and sets the image size.
        given: as for `load_encoder`.

    Returns:
        The classifier, and notes on what was loaded, skipped, resized or assumed.

    Raises:
        WeightsError: for tensors that are missing, unexpected, of another shape or not finite.
    """
    new = create(config.model, seed=config.seed).encoder
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Classifier(
            new, num_classes=config.num_classes, pool=config.pool, drop_path=config.drop_path
        )
    # fc_norm replaces the encoder's norm, so the file may or may not have it.
    left = ("encoder.norm.",) if config.pool == "mean" else ()
    return Loaded(model, fill_encoder(model.encoder, path, config.model, left=left, **given))


def initial_segmenter(
    path: Source | None, config: SegmentConfig, **given: Unpack[Given]
) -> Loaded[Segmenter]:
    """Create the initial segmenter: a new head on loaded or new encoder weights.

    The last norm is not used. Relative positions and LayerScale start as they do on pre-trained
    weights, from a segmenter as well.

    Args:
        path: as for `load_encoder`; None initialises the encoder from the seed.
        config: its `model` must come from `config_from_weights` and sets the image size.
        given: as for `load_encoder`.

    Returns:
        The segmenter, and notes on what was loaded, skipped, resized or assumed.

    Raises:
        WeightsError: for tensors that are missing, unexpected, of another shape or not finite.
    """
    new = create(config.model, seed=config.seed).encoder
    new.norm = torch.nn.Identity()  # type: ignore[assignment]
    unused = () if config.dense.has_cls else ("encoder.cls_token",)
    notes = fill_encoder(new, path, config.model, left=OF_DENSE, unused=unused, **given)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Segmenter(
            new,
            num_classes=config.num_classes,
            dense=config.dense,
            head=config.head,
            drop_path=config.drop_path,
        )
    return Loaded(model, notes)


def fill_encoder(
    encoder: Encoder,
    path: Source | None,
    config: ModelConfig,
    *,
    left: tuple[str, ...],
    unused: tuple[str, ...] = (),
    parts: tuple[str, ...] | None = None,
    **given: Unpack[Given],
) -> list[str]:
    """Load the weights of an encoder, resized, in place; return notes.

    Args:
        encoder: the encoder of `config`.
        path: as for `load_encoder`; None changes nothing.
        config: the network.
        left: starts of the names of tensors that are not loaded if the file has them.
        unused: names of tensors that the file need not have.
        parts: further groups of tensors that are taken of it, for a detector; None: no detector.
        given: as for `load_encoder`.
    """
    if path is None:
        return []
    raw = read_weights(path, **given)
    if parts is None:
        require_plain_encoder(raw)
    known = infer_fields(raw.encoder())
    tensors, changes = resize_weights(raw.tensors, known.fields, to=config)
    tensors = {n: t for n, t in tensors.items() if not n.startswith(left)}
    raw = raw._replace(tensors=tensors)
    missing = tuple(name for name in unused if name not in tensors)
    load_strict(encoder, raw, prefix="encoder.", expected="an encoder", allow_missing=missing)
    groups = group_notes(raw, config, ("encoder", *(parts or ())))
    return [*notes_on(raw, known), *changes, *groups]
