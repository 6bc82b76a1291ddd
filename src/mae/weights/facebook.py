"""The published PyTorch layout: encoder names bare, decoder names with `decoder_`.

timm's ViT files have the same names for the encoder. `head.*` and `fc_norm.*` are a classifier's;
of a linear probe, `head` is a batch norm and a layer.

Source: spec 5.2, [FB] models_mae.py and util/misc.py (names only; no code is taken from there).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.weights.folder import Description
from mae.weights.layout import PARTS, Facts, Layout, Table, probe_norm, spelled

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


def to_ours(name: str) -> str | None:
    """Rename a tensor of the published layout: blocks.0.norm1.bias, mask_token ..."""
    return TABLE.inverse().translate(name)


def to_theirs(name: str) -> str:
    """Rename one of our tensors: encoder.blocks.0.norm1.bias, decoder.mask_token ..."""
    return TABLE.translate(name) or name


def _facts(beside: Mapping[str, Any], _file: Path) -> Facts:
    """Read the `args` of the published training script, a Namespace, where there is one."""
    found = getattr(beside.get("args"), "__dict__", {})
    normalize, ratio = found.get("norm_pix_loss"), found.get("mask_ratio")
    fields: dict[str, object] = {}
    if isinstance(normalize, bool):
        fields["normalize_target"] = normalize
    if isinstance(ratio, float) and 0 < ratio < 1:
        fields["mask_ratio"] = ratio
    return Facts(fields)


LAYOUT = Layout("facebook", (TABLE, _PROBED), _facts)


def refuses(description: Description, _names: Collection[str]) -> str | None:
    """Say why a model cannot be held, if it cannot."""
    if description.model.norm_eps != 1e-6:
        return f"its norms add 1e-6, those of this model {description.model.norm_eps:g}"
    return None


def write(path: Path, tensors: Mapping[str, Tensor], *, said: str) -> None:
    """Write a `.pth` that the published code and timm load, with our description beside.

    Args:
        path: file to write.
        tensors: by our names.
        said: the JSON of `folder.Description`, so that reading it back need not guess.
    """
    torch.save({"model": spelled(TABLE, tensors), "mae": said}, path)
