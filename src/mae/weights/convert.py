"""From one layout to another, with a proof that the model is the same."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from mae.errors import WeightsError
from mae.fields import to_dict
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.encoder import Encoder
from mae.weights import facebook, folder
from mae.weights.detect import Format, read_weights
from mae.weights.load import Loaded, open_encoder, open_model


class Converted(NamedTuple):
    """What a conversion wrote."""

    path: str
    tensors: int
    """All read back equal to the last bit, with an equal configuration."""
    notes: list[str]


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Format,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> Converted:
    """Write weights in another layout, read them back, and compare every tensor.

    Args:
        src: whatever `load` or `load_encoder` takes.
        dst: file or folder to make, in a folder that exists.
        to: "mae", a folder of ours, or "facebook", a published-layout file.
        heads: for files that do not hold it and are of no known width.
        decoder_heads: likewise.

    Raises:
        WeightsError: if `src` cannot be loaded, `dst` exists or cannot be written, or the two
            models differ; then nothing is left at `dst`.
    """
    path, raw = Path(dst), read_weights(src)
    if not path.parent.is_dir():
        raise WeightsError(f"{path.parent}: no such folder; make it first")
    if path.exists():
        raise WeightsError(f"{path}: exists already; choose another name, or remove it first")
    model, notes = _open(src, heads=heads, decoder_heads=decoder_heads)
    facts = raw.description.facts if raw.description else {}
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        if to == "mae":
            folder.save(model, temporary, facts=facts)
        else:
            description = folder.Description(model=model.config, facts=dict(facts))
            tensors = folder.tensors_of(model)
            facebook.write(temporary, tensors, description=json.dumps(to_dict(description)))
        if not _same(model, _open(temporary).model):
            raise WeightsError(f"{path}: not written: it reads back as another model")
        temporary.rename(path)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    return Converted(str(path), len(folder.tensors_of(model)), notes)


def _open(
    path: str | Path, *, heads: int | None = None, decoder_heads: int | None = None
) -> Loaded[MaskedAutoencoder | Encoder]:
    if read_weights(path).has_decoder:
        return open_model(path, heads=heads, decoder_heads=decoder_heads)
    return open_encoder(path, heads=heads)


def _same(a: MaskedAutoencoder | Encoder, b: MaskedAutoencoder | Encoder) -> bool:
    mine, yours = folder.tensors_of(a), folder.tensors_of(b)
    same_names = a.config == b.config and mine.keys() == yours.keys()
    return same_names and all(torch.equal(mine[name], yours[name]) for name in mine)
