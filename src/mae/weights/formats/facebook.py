"""Checkpoint layout of the published PyTorch MAE (facebookresearch/mae).

Encoder names have no prefix, decoder names start with `decoder_`. timm's ViT files use the same
names for the encoder. `head.*` and `fc_norm.*` belong to a classifier; in a linear probe, `head`
is a batch norm followed by a linear layer.

Source: github.com/facebookresearch/mae, models_mae.py and util/misc.py (names only; no code is
copied).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.weights.formats import timm_config
from mae.weights.formats.name_table import PARTS, Facts, Layout, Table, probe_norm, spelled
from mae.weights.formats.native import Description

ENCODER = {
    "encoder.cls_token": "cls_token",
    "encoder.pos_embed": "pos_embed",
    "encoder.patch_embed.proj": "patch_embed.proj",
    "encoder.norm": "norm",
}
DECODER = {
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.embed": "decoder_embed",
    "decoder.norm": "decoder_norm",
    "decoder.pred": "decoder_pred",
}
BLOCKS = {"encoder.blocks": "blocks", "decoder.blocks": "decoder_blocks"}
SAME_PARTS = {part: part for part in PARTS}

TABLE = Table(ENCODER | DECODER | {"fc_norm": "fc_norm", "head": "head"}, BLOCKS, SAME_PARTS)
_PROBED = Table(ENCODER | probe_norm("head.0") | {"head": "head.1"}, BLOCKS, SAME_PARTS)


# Model names in the arguments of the published scripts.
_NETWORK = re.compile(
    r"(?P<mae>mae_)?vit_(?P<size>base|large|huge)_patch(14|16)(?(mae)(_dec512d8b)?)"
)
_WIDTHS = {"base": 768, "large": 1024, "huge": 1280}


def to_ours(name: str) -> str | None:
    """Translate a name of the published layout to mae's: blocks.0.norm1.bias, mask_token ..."""
    return TABLE.inverse().translate(name)


def to_theirs(name: str) -> str:
    """Translate a name of mae to the published layout: encoder.blocks.0.norm1.bias ..."""
    return TABLE.translate(name) or name


def _facts(beside: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> Facts:
    """Read timm's config.json, or the `args` of the published training script."""
    # Only next to the file names that timm writes: a config.json may be next to another by chance.
    if file.name.startswith(("model", "pytorch_model")):
        found = timm_config.read(file.with_name(timm_config.CONFIG), tensors)
        if found is not None:
            return found
    args = beside.get("args")
    said = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    fields: dict[str, object] = {}
    if isinstance(normalize := said.get("norm_pix_loss"), bool):
        fields["normalize_target"] = normalize
    if isinstance(ratio := said.get("mask_ratio"), float) and 0 < ratio < 1:
        fields["mask_ratio"] = ratio
    named = _NETWORK.fullmatch(str(said.get("model")))
    cls = tensors.get("encoder.cls_token")
    if named and cls is not None and cls.shape[-1:] == (_WIDTHS[named["size"]],):
        fields |= {"num_heads": 12 if named["size"] == "base" else 16, "norm_eps": 1e-6}
        if named["mae"]:
            fields["decoder_heads"] = 16
    return Facts(fields, source="the run's arguments", gelu=bool(named))


LAYOUT = Layout("facebook", (TABLE, _PROBED), _facts)


def refuses(description: Description, _names: Collection[str]) -> str | None:
    """Return why this layout cannot hold a model; None if it can."""
    if description.model.norm_eps != 1e-6:
        return f"its norms add 1e-6, those of this model {description.model.norm_eps:g}"
    return None


def write(path: Path, tensors: Mapping[str, Tensor], *, said: str) -> None:
    """Write a `.pth` that the published code and timm load, with mae's description included.

    Args:
        path: file to write.
        tensors: by mae's names.
        said: JSON of `native.Description`, so that no field is guessed on reading it back.
    """
    # To an open file: from a path, torch derives the archive name, which must not be empty.
    with path.open("wb") as file:
        torch.save({"model": spelled(TABLE, tensors), "mae": said}, file)
