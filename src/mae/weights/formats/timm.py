"""Write timm vision transformer weights: one safetensors file without a decoder.

The names are those of the published layout, so `facebook.py` reads these files.

Source: timm 1.0.31, VisionTransformer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.atomic import write_atomic
from mae.weights.formats import facebook
from mae.weights.formats.name_table import spelled
from mae.weights.formats.native import Description


def refuses(description: Description, names: Collection[str]) -> str | None:
    """Return why this layout cannot hold a model; None if it can."""
    if any(name.startswith("decoder.") for name in names):
        return "it has no decoder; give --encoder-only to leave it"
    return facebook.refuses(description, names)


def write(path: Path, tensors: Mapping[str, Tensor], *, said: str) -> None:
    """Write a file that the strict `load_state_dict` of timm's model accepts.

    Args:
        path: file to write; timm recognises safetensors by the suffix.
        tensors: by mae's names.
        said: JSON of `native.Description`, written as metadata, which timm ignores.
    """
    named = spelled(facebook.TABLE, tensors)
    write_atomic(path, to_safetensors(named, {"format": "pt", "mae": said}))
