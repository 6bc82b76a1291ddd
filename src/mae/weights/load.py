"""Load models from weights strictly, reporting missing and unexpected tensors."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, Unpack

import torch
from torch import nn

from mae.config.run import ChannelRule, ModelConfig, ObjectiveConfig
from mae.config.sizes import size_name
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.runs.directory import differences
from mae.weights.adapt_shape import adapt
from mae.weights.given import OPTIONS, Given
from mae.weights.infer_config import (
    ASSUMED,
    OBJECTIVE,
    Known,
    config_of,
    guesses,
    objective_of,
    read_fields,
)
from mae.weights.load_state import fill
from mae.weights.read import RawWeights, read_weights

# Model fields that a new run may change when it starts from weights.
_FREE = {"image_size", "channels", "pixels", "crop_pct", *OBJECTIVE}

# Options of a run that set fields unknown from the weights.
_OF_RUN = {
    "num_heads": "--model.num-heads",
    "decoder_heads": "--model.decoder-heads",
    "norm_eps": "--model.norm-eps",
}

# Groups of tensors that may be skipped, and why.
_LEFT = {
    "decoder": "only reconstruction needs it",
    "head": "it is a classifier's",
    "fc_norm": "it is a classifier's",
    "unused": "no part of a masked autoencoder",
}

ModelT = TypeVar("ModelT", bound=nn.Module, covariant=True)


class Loaded(NamedTuple, Generic[ModelT]):
    """A model, and notes on what was skipped and assumed."""

    model: ModelT
    notes: list[str]


def load(
    path: str | Path, *, allow_missing: Iterable[str] = (), **given: Unpack[Given]
) -> MaskedAutoencoder:
    """Load encoder and decoder; notes on what was loaded, skipped and assumed go to stderr.

    Args:
        path: folder of mae or transformers, run, checkpoint, file in a supported layout, or
            `hf:owner/name`.
        allow_missing: patterns of tensor names, in the file's or mae's naming
            (`decoder.norm.*`). Missing tensors that match are initialised and reported.
        given: settings that the file does not say, see `Given`; the rest is assumed.

    Raises:
        WeightsError: for other tensors that are missing, unexpected, of another shape or not
            finite.
    """
    return _said(open_model(path, allow_missing=allow_missing, **given))


def load_encoder(
    path: str | Path, *, allow_missing: Iterable[str] = (), **given: Unpack[Given]
) -> Encoder:
    """Load the encoder alone; notes on what was loaded, skipped and assumed go to stderr.

    Arguments and errors are those of `load`; a decoder or a classifier's head is skipped.
    """
    return _said(open_encoder(path, allow_missing=allow_missing, **given))


def open_model(
    path: str | Path,
    *,
    crop_pct: float | None = None,
    allow_missing: Iterable[str] = (),
    **given: Unpack[Given],
) -> Loaded[MaskedAutoencoder]:
    """Load encoder and decoder, with notes on what was loaded, skipped and assumed."""
    raw, allowed = read_weights(path, take=given.get("take")), tuple(allow_missing)
    if not raw.has_decoder and not allowed:
        raise WeightsError(
            f"decoder: not in this file, {raw.path}; features are possible (load_encoder), "
            "reconstruction is not"
        )
    config, notes = config_of(raw, crop_pct=crop_pct, **given)
    objective = objective_of(raw, **given)
    with torch.device("meta"):
        model = MaskedAutoencoder(config, objective)
    if allowed:
        model = create(config, objective=objective)
    fresh = fill(model, raw, allow_missing=allowed)
    taken = ("encoder", "decoder")
    notes.append(taken_note(raw, config, taken=taken))
    return Loaded(model, notes + left_notes(raw, taken=taken) + fresh)


def open_encoder(
    path: str | Path,
    *,
    crop_pct: float | None = None,
    allow_missing: Iterable[str] = (),
    **given: Unpack[Given],
) -> Loaded[Encoder]:
    """Load the encoder alone, with notes on what was loaded, skipped and assumed."""
    raw, allowed = read_weights(path, take=given.get("take")), tuple(allow_missing)
    own = {name: tensor for name, tensor in raw.tensors.items() if name.startswith("encoder.")}
    # The encoder's tensors only, so that unknown decoder settings are not required.
    config, notes = config_of(raw._replace(tensors=own), crop_pct=crop_pct, **given)
    with torch.device("meta"):
        encoder = Encoder(config)
    if allowed:
        encoder = create(config).encoder
    fresh = fill(encoder, raw, prefix="encoder.", allow_missing=allowed)
    notes.append(taken_note(raw, config, taken=("encoder",)))
    if not raw.has_decoder:
        fresh.append("decoder: not in this file; reconstruction is not possible, features are")
    return Loaded(encoder, notes + left_notes(raw, taken=("encoder",)) + fresh)


def taken_note(raw: RawWeights, config: ModelConfig, *, taken: Sequence[str]) -> str:
    """Describe which groups of tensors were loaded, and the network."""
    groups = [name.partition(".")[0] for name in raw.tensors]
    held = [group for group in taken if group in groups]
    number = sum(group in held for group in groups)
    name = size_name(width=config.width, depth=config.depth, patch_size=config.patch_size)
    return f"{raw.path}: took the {' and '.join(held)}, {name}, {number} tensors"


def left_notes(raw: RawWeights, *, taken: Collection[str]) -> list[str]:
    """Describe each group of skipped tensors, and why it is not needed."""
    groups = [name.partition(".")[0] for name in raw.tensors]
    left = sorted(set(groups) - set(taken))
    return [
        f"{raw.path}: left {group}, {groups.count(group)} tensors: {_LEFT[group]}" for group in left
    ]


def initial_model(
    path: str | Path,
    config: ModelConfig,
    *,
    objective: ObjectiveConfig | None = None,
    seed: int = 0,
    init_channels: ChannelRule | None = None,
    followed: bool = False,
    **given: Unpack[Given],
) -> Loaded[MaskedAutoencoder]:
    """Create the initial model of a training run from weights, with a new decoder if there is none.

    Args:
        path: as for `load`.
        config: the model to train. Its sizes must match the weights; image size and channels may
            differ.
        objective: mask and target of the run; those of the weights may differ.
        seed: seed of a new decoder.
        init_channels: how to adapt weights with another number of channels, see `adapt`.
        followed: whether the config was made from these weights and its assumptions are already
            reported. Otherwise, fields that the weights do not say are taken from the config.
        given: see `load`.

    Raises:
        WeightsError: if the weights belong to another model.
        ConfigError: for a channel rule that has no effect or cannot be applied.
    """
    raw = read_weights(path, take=given.get("take"))
    known = read_fields(raw, **given)
    stored = known.fields
    own = {n for n in stored if known.how[n] != ASSUMED and n not in _FREE}
    of_weights, of_run = {n: stored[n] for n in own}, {n: getattr(config, n) for n in own}
    if of_weights != of_run:
        raise WeightsError(
            f"{raw.path}: holds another model: {differences(of_weights, of_run)}; give the new "
            "run the model of the weights"
        )
    tensors, adapted = adapt(
        raw.tensors,
        image_size=stored["image_size"],
        channels=stored["channels"],
        to=config,
        rule=init_channels,
    )
    raw = raw._replace(tensors=tensors)
    notes = [] if followed else [*raw.notes, *raw.facts.notes, *_as_the_run(raw, known, config)]
    notes += adapted
    model = create(config, objective=objective, seed=seed)
    fill(model.encoder, raw, prefix="encoder.")
    taken = ("encoder", "decoder")
    notes.append(taken_note(raw, config, taken=taken))
    if raw.has_decoder:
        fill(model.decoder, raw, prefix="decoder.")
    else:
        notes.append(f"decoder: not in {raw.path}, starts fresh")
    return Loaded(model, notes + left_notes(raw, taken=taken))


def _as_the_run(raw: RawWeights, known: Known, config: ModelConfig) -> list[str]:
    """Describe the fixed fields that are unknown from the weights and taken from the run."""
    names = [name for name in known.unsaid if name in _OF_RUN or name in ("image_size", "gelu")]
    fields = known.fields | {name: getattr(config, name) for name in _OF_RUN}
    return guesses(raw, Known(fields, {}, tuple(names)), options={**OPTIONS, **_OF_RUN})


def _said(loaded: Loaded[ModelT]) -> ModelT:
    for note in loaded.notes:
        print(note, file=sys.stderr)
    return loaded.model
