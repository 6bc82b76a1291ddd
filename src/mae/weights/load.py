"""Models from weights, strictly: what is missing or left over is named, or it is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import nn

from mae.config import ChannelRule, ModelConfig
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.sizes import size_name
from mae.train.rundir import differences
from mae.weights.adapt import adapt
from mae.weights.detect import RawWeights, read_weights
from mae.weights.files import is_finite
from mae.weights.shapes import config_of, read_fields

# Fields of a model that a new run may change although it starts from weights.
_FREE = {"image_size", "channels", "mask_ratio", "normalize_target", "target_eps", "pixels"}

_AUTOENCODER = (
    "a masked autoencoder (not one fine-tuned with fc_norm in place of the encoder's norm)"
)

ModelT = TypeVar("ModelT", bound=nn.Module, covariant=True)


class Loaded(NamedTuple, Generic[ModelT]):
    """A model and, one line each, what was left out and what had to be assumed."""

    model: ModelT
    notes: list[str]


def load(
    path: str | Path, *, heads: int | None = None, decoder_heads: int | None = None
) -> MaskedAutoencoder:
    """Load encoder and decoder; what had to be assumed goes to stderr.

    Args:
        path: folder of ours, run, checkpoint, a published-layout file, or `hf:owner/name`.
        heads: for files that do not hold it and are of no known width.
        decoder_heads: likewise.

    Raises:
        WeightsError: for anything missing, left over, of another shape or not finite.
    """
    return _said(open_model(path, heads=heads, decoder_heads=decoder_heads))


def load_encoder(path: str | Path, *, heads: int | None = None) -> Encoder:
    """Load the encoder alone; what was taken and what was left goes to stderr.

    Arguments and errors are those of `load`; a decoder or a classifier's head is left.
    """
    return _said(open_encoder(path, heads=heads))


def open_model(
    path: str | Path, *, heads: int | None = None, decoder_heads: int | None = None
) -> Loaded[MaskedAutoencoder]:
    """Load encoder and decoder; the notes say what had to be assumed."""
    raw = read_weights(path)
    if not raw.has_decoder:
        raise WeightsError(
            f"decoder: not in this file, {raw.path}; features are possible (load_encoder), "
            "reconstruction is not"
        )
    config, notes = config_of(raw, heads=heads, decoder_heads=decoder_heads)
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    fill(model, raw)
    return Loaded(model, notes)


def open_encoder(path: str | Path, *, heads: int | None = None) -> Loaded[Encoder]:
    """Load the encoder alone; the notes say what was taken, left and assumed."""
    raw = read_weights(path)
    own = {name: tensor for name, tensor in raw.tensors.items() if name.startswith("encoder.")}
    # By itself, so that what a decoder leaves open is not asked for.
    config, notes = config_of(raw._replace(tensors=own), heads=heads)
    with torch.device("meta"):
        encoder = Encoder(config)
    fill(encoder, raw, prefix="encoder.")
    name = size_name(width=config.width, depth=config.depth, patch_size=config.patch_size)
    notes.append(f"{raw.path}: took the encoder, {name}, {len(own)} tensors")
    left = raw.tensors.keys() - own.keys()
    if left:
        groups = ", ".join(sorted({name.partition(".")[0] for name in left}))
        notes.append(f"{raw.path}: left {groups}, {len(left)} tensors")
    return Loaded(encoder, notes)


def initial_model(
    path: str | Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    init_channels: ChannelRule | None = None,
) -> Loaded[MaskedAutoencoder]:
    """Start a new training from weights; an encoder alone gets a fresh decoder.

    Args:
        path: as for `load`.
        config: the model to train; its sizes must be those of the weights, while its image
            size, channels, mask ratio and target need not be.
        seed: key of a fresh decoder.
        init_channels: what weights of other channels become, see `adapt`.

    Raises:
        WeightsError: if the weights are of another model.
        ConfigError: for a rule of channels that has no effect or no meaning.
    """
    raw = read_weights(path)
    stored = read_fields(raw)
    of_weights = {name: value for name, value in stored.items() if name not in _FREE}
    of_run = {name: getattr(config, name) for name in of_weights}
    if of_weights != of_run:
        raise WeightsError(
            f"{raw.path}: holds another model: {differences(of_weights, of_run)}; give the new "
            "run the model of the weights"
        )
    tensors, notes = adapt(
        raw.tensors,
        image_size=stored["image_size"],
        channels=stored["channels"],
        to=config,
        rule=init_channels,
    )
    raw = raw._replace(tensors=tensors)
    model = create(config, seed=seed)
    fill(model.encoder, raw, prefix="encoder.")
    if raw.has_decoder:
        fill(model.decoder, raw, prefix="decoder.")
    else:
        notes.append(f"decoder: not in {raw.path}, starts fresh")
    return Loaded(model, notes)


def _said(loaded: Loaded[ModelT]) -> ModelT:
    for note in loaded.notes:
        print(note, file=sys.stderr)
    return loaded.model


def fill(
    module: nn.Module, raw: RawWeights, *, prefix: str = "", expected: str = _AUTOENCODER
) -> None:
    """Give a module copies of the tensors whose names begin with the prefix, as float32.

    Args:
        module: perhaps on the meta device.
        raw: all of its tensors with the prefix are taken.
        prefix: of our names.
        expected: what the file is asked to be, for the message.

    Raises:
        WeightsError: unless they are those of the module, name by name.
    """
    found = {name: tensor for name, tensor in raw.tensors.items() if name.startswith(prefix)}
    wanted = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
    both = [name for name in wanted if name in found]
    problems = {
        "missing": [raw.spell(name) for name in wanted if name not in found],
        "unexpected": [raw.spell(name) for name in found if name not in wanted],
        "of another shape": [
            f"{raw.spell(name)} {list(found[name].shape)}, expected {list(wanted[name])}"
            for name in both
            if found[name].shape != wanted[name]
        ],
        "not finite numbers": [raw.spell(name) for name in both if not is_finite(found[name])],
    }
    said = [f"{len(n)} {what} ({'; '.join(n[:5])})" for what, n in problems.items() if n]
    if said:
        raise WeightsError(f"{raw.path}: {', '.join(said)}; is it whole, and of {expected}?")
    copies = {
        name.removeprefix(prefix): tensor.detach().to(torch.float32, copy=True).contiguous()
        for name, tensor in found.items()
    }
    # Assigned, not copied into: a model on the meta device costs neither memory nor draws.
    module.load_state_dict(copies, assign=True)
