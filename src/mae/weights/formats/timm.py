"""The layout of timm's vision transformers: the published encoder names, in one safetensors file.

Read as the published layout, whose names it shares; this writes it. There is no decoder.

Source: timm 1.0.31, VisionTransformer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.runs.directory import write_atomic
from mae.weights.formats import facebook
from mae.weights.formats.name_table import spelled
from mae.weights.formats.native import Description


def refuses(description: Description, names: Collection[str]) -> str | None:
    """Say why a model cannot be held, if it cannot."""
    if any(name.startswith("decoder.") for name in names):
        return "it has no decoder; give --encoder-only to leave it"
    return facebook.refuses(description, names)


def write(path: Path, tensors: Mapping[str, Tensor], *, said: str) -> None:
    """Write a file that `load_state_dict` of timm's model takes strictly.

    Args:
        path: file to write; timm tells safetensors by the end of its name.
        tensors: by our names.
        said: the JSON of `folder.Description`, as metadata, which timm does not read.
    """
    named = spelled(facebook.TABLE, tensors)
    write_atomic(path, to_safetensors(named, {"format": "pt", "mae": said}))
