"""Checkpoint layout of the published PyTorch MAE (facebookresearch/mae), and of timm's ViT files.

Encoder names have no prefix, decoder names start with `decoder_`. timm uses the same names for
the encoder; its files are written as safetensors, without a decoder. `head.*` and `fc_norm.*`
belong to a classifier; in a linear probe, `head` is a batch norm followed by a linear layer.

Source: github.com/facebookresearch/mae, models_mae.py and util/misc.py (names only; no code is
copied); timm 1.0.31, VisionTransformer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.atomic import write_atomic
from mae.config.serialize import to_dict
from mae.weights.formats import timm_config
from mae.weights.formats.name_table import (
    LAYERS,
    Description,
    Layout,
    Metadata,
    block_names,
    inverse,
    probe_norm,
    renamed,
    translate,
)

ENCODER = {
    "encoder.cls_token": "cls_token",
    "encoder.pos_embed": "pos_embed",
    "encoder.patch_embed.proj": "patch_embed.proj",
    **block_names("encoder.blocks", "blocks", LAYERS),
    "encoder.norm": "norm",
}
DECODER = {
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.embed": "decoder_embed",
    **block_names("decoder.blocks", "decoder_blocks", LAYERS),
    "decoder.norm": "decoder_norm",
    "decoder.pred": "decoder_pred",
}
TABLE = ENCODER | DECODER | {"fc_norm": "fc_norm", "head": "head"}
_PROBED = ENCODER | probe_norm("head.0") | {"head": "head.1"}

# Model names in the arguments of the published scripts.
_NETWORK = re.compile(
    r"(?P<mae>mae_)?vit_(?P<size>base|large|huge)_patch(14|16)(?(mae)(_dec512d8b)?)"
)
_WIDTHS = {"base": 768, "large": 1024, "huge": 1280}


def to_ours(name: str) -> str | None:
    """Translate a name of the published layout to mae's: blocks.0.norm1.bias, mask_token ..."""
    return translate(inverse(TABLE), name)


def to_theirs(name: str) -> str:
    """Translate a name of mae to the published layout: encoder.blocks.0.norm1.bias ..."""
    return translate(TABLE, name) or name


def _read_metadata(
    beside: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]
) -> Metadata:
    """Read timm's config.json, or the `args` of the published training script."""
    # Only next to the file names that timm writes: a config.json may be next to another by chance.
    if file.name.startswith(("model", "pytorch_model")):
        found = timm_config.read(file.with_name(timm_config.CONFIG), tensors)
        if found is not None:
            return found
    args = beside.get("args")
    stored = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    fields: dict[str, object] = {}
    if isinstance(normalize := stored.get("norm_pix_loss"), bool):
        fields["normalize_target"] = normalize
    if isinstance(ratio := stored.get("mask_ratio"), float) and 0 < ratio < 1:
        fields["mask_ratio"] = ratio
    named = _NETWORK.fullmatch(str(stored.get("model")))
    cls = tensors.get("encoder.cls_token")
    if named and cls is not None and cls.shape[-1:] == (_WIDTHS[named["size"]],):
        fields |= {"num_heads": 12 if named["size"] == "base" else 16, "norm_eps": 1e-6}
        if named["mae"]:
            fields["decoder_heads"] = 16
    return Metadata(fields, "by the run's arguments", gelu=bool(named))


def _refuses(description: Description, _names: Collection[str]) -> str | None:
    if description.model.norm_eps != 1e-6:
        return f"its norm eps is 1e-6, that of this model {description.model.norm_eps:g}"
    return None


def _write(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a `.pth` that the published code and timm load.

    mae's description is included, so that no field is guessed on reading it back.
    """
    content = BytesIO()
    named = renamed(TABLE, tensors)
    torch.save({"model": named, "mae": json.dumps(to_dict(description))}, content)
    write_atomic(path, content.getvalue())


def _refuses_timm(description: Description, names: Collection[str]) -> str | None:
    if any(name.startswith("decoder.") for name in names):
        return "it has no decoder; give --encoder-only to leave it"
    return _refuses(description, names)


def _write_timm(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a file that the strict `load_state_dict` of timm's model accepts.

    mae's description is written as metadata, which timm ignores.
    """
    about = {"format": "pt", "mae": json.dumps(to_dict(description))}
    write_atomic(path, to_safetensors(renamed(TABLE, tensors), about))


LAYOUT = Layout("facebook", (TABLE, _PROBED), _read_metadata, _write, _refuses)
TIMM = Layout("timm", write=_write_timm, refuses=_refuses_timm)
