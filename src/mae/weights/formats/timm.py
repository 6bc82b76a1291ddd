"""Write timm vision transformer weights: one safetensors file without a decoder.

The names are those of the published layout, so `facebook.py` reads these files.

Source: timm 1.0.31, VisionTransformer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.atomic import write_atomic
from mae.config.serialize import to_dict
from mae.weights.formats import facebook
from mae.weights.formats.layout import Description, Layout
from mae.weights.formats.name_table import renamed


def _refuses(description: Description, names: Collection[str]) -> str | None:
    if any(name.startswith("decoder.") for name in names):
        return "it has no decoder; give --encoder-only to leave it"
    return facebook.refuses(description, names)


def _write(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a file that the strict `load_state_dict` of timm's model accepts.

    mae's description is written as metadata, which timm ignores.
    """
    about = {"format": "pt", "mae": json.dumps(to_dict(description))}
    write_atomic(path, to_safetensors(renamed(facebook.TABLE, tensors), about))


LAYOUT = Layout("timm", write=_write, refuses=_refuses)
