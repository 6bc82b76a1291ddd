"""Models from weights, strictly: what is missing or left over is listed, or it is an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mae.config import ModelConfig, size_name
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.model.positions import resize_positions
from mae.weights.detect import RawWeights, read_weights
from mae.weights.shapes import Told, config_of

ModelT = TypeVar("ModelT", bound=nn.Module)

_MAX_NAMED = 5


class Loaded(NamedTuple, Generic[ModelT]):
    """A model and what there is to say about how it came about."""

    model: ModelT
    notes: list[str]
    """One line each: what was left out, what had to be assumed."""


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    normalize_target: bool | None = None,
) -> MaskedAutoencoder:
    """Load encoder and decoder; what had to be assumed goes to stderr.

    Args:
        path: folder of ours, run, checkpoint, or a published-layout file.
        heads, decoder_heads: for files of an unknown width that do not hold them.
        image_size: height and width, for such files whose patch grid is not square.
        normalize_target: for such files: whether they predict pixels normalised by their patch.

    Raises:
        WeightsError: for anything missing, left over, of another shape or not finite.
    """
    told = Told(heads, decoder_heads, image_size, normalize_target)
    return _said(open_model(path, told=told))


def load_encoder(
    path: str | Path,
    *,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Encoder:
    """Load the encoder alone; what was taken and what was left goes to stderr.

    Args and errors are those of `load`; decoder and classifier heads are left, and said.
    """
    return _said(open_encoder(path, told=Told(heads=heads, image_size=image_size)))


def open_model(path: str | Path, *, told: Told = Told()) -> Loaded[MaskedAutoencoder]:
    """Load encoder and decoder, with the notes."""
    raw = read_weights(path)
    if not raw.has_decoder:
        raise WeightsError(
            f"decoder: not in this file, {raw.path}; features are possible (load_encoder), "
            "reconstruction is not"
        )
    config, notes = config_of(raw, told)
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    _fill(model, raw, raw.tensors)
    return Loaded(model, notes)


def open_encoder(path: str | Path, *, told: Told = Told()) -> Loaded[Encoder]:
    """Load the encoder alone, with the notes: what was taken and what was left."""
    raw = read_weights(path)
    # The decoder's heads do not matter here; 1 divides every width.
    config, _ = config_of(raw, told if raw.config else told._replace(decoder_heads=1))
    with torch.device("meta"):
        encoder = Encoder(config)
    taken, left = _split(raw.tensors)
    _fill(encoder, raw, taken, prefix="encoder.")
    name = size_name(width=config.width, depth=config.depth, patch_size=config.patch_size)
    notes = [f"{raw.path}: took {len(taken)} tensors, the encoder ({name})"]
    if left:
        notes.append(f"{raw.path}: left {len(left)} tensors: {_groups(raw, left)}")
    return Loaded(encoder, notes)


def initial_model(
    path: str | Path, config: ModelConfig, *, seed: int = 0
) -> Loaded[MaskedAutoencoder]:
    """Start a new training from weights; an encoder alone gets a fresh decoder.

    Args:
        path: as for `load`.
        config: the model to train; its size must be that of the weights, its image size, mask
            ratio and target need not be.
        seed: key of a fresh decoder.

    Raises:
        WeightsError: if the weights are of another model.
    """
    raw = read_weights(path)
    told = None if raw.config else Told(config.num_heads, config.decoder_heads, config.image_size)
    stored, _ = config_of(raw, told or Told())
    model = create(config, seed=seed)
    fields = ["patch_size", "channels", "width", "depth", "num_heads", "mlp_ratio"]
    decoder_fields = ["decoder_width", "decoder_depth", "decoder_heads"] if raw.has_decoder else []
    for name in fields + decoder_fields:
        if getattr(stored, name) != getattr(config, name):
            raise WeightsError(
                f"{name}: {raw.path} has {getattr(stored, name)}, the new run "
                f"{getattr(config, name)}; give the run the model of the weights"
            )
    return Loaded(model, [])


def check_keys(
    found: Collection[str],
    wanted: Collection[str],
    *,
    source: str,
    spell: Callable[[str], str] = str,
) -> None:
    """Require that the names are the same.

    Raises:
        WeightsError: listing at most 5 of each kind, in the spelling of the source.
    """
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if not missing and not extra:
        return
    lists = [
        f"{len(names)} {kind} {[spell(name) for name in names[:_MAX_NAMED]]}"
        for kind, names in (("missing", missing), ("unexpected", extra))
        if names
    ]
    raise WeightsError(f"{source}: {', '.join(lists)}; {_cause(missing, extra)}")
