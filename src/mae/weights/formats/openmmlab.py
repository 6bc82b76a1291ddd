"""Checkpoint layout of OpenMMLab: mmselfsup 0.x and 1.x, mmpretrain 1.x (read only).

A file holds `state_dict` and `meta`. Pre-trained, fine-tuned (mean of the patches) and
linear-probe files differ only in their heads. The position embeddings encode the row in the first
half and the column in the second; they are loaded unchanged, so this needs no conversion.

Source: mmselfsup and mmpretrain of OpenMMLab (names only; no code is copied).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mae.config.model import PixelConfig
from mae.weights.formats.name_table import Layout, Metadata, block_names, probe_norm

_LAYERS = {
    "norm1": "ln1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "ln2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}
_ENCODER = {
    "encoder.cls_token": "backbone.cls_token",
    "encoder.pos_embed": "backbone.pos_embed",
    "encoder.patch_embed.proj": "backbone.patch_embed.projection",
    **block_names("encoder.blocks", "backbone.layers", _LAYERS),
    "encoder.norm": "backbone.ln1",
}
_DECODER = {
    "decoder.mask_token": "neck.mask_token",
    "decoder.pos_embed": "neck.decoder_pos_embed",
    "decoder.embed": "neck.decoder_embed",
    **block_names("decoder.blocks", "neck.decoder_blocks", _LAYERS),
    "decoder.norm": "neck.ln1",
    "decoder.pred": "neck.decoder_pred",
}
# Heads by the name of the network in a config; small is 768 wide with 8 heads, only in OpenMMLab.
_HEADS_OF: Mapping[str | None, int] = {
    "small": 8, "s": 8, "base": 12, "b": 12, "large": 16, "l": 16, "huge": 16, "h": 16,
    "deit-tiny": 3, "deit-t": 3, "deit-small": 6, "deit-s": 6, "deit-base": 12, "deit-b": 12,
    "mocov3-small": 12, "mocov3-s": 12,
}  # fmt: skip
_NUMBERS = r"[\[(]\s*(\d+\.?\d*(?:\s*,\s*\d+\.?\d*)*)\s*,?\s*[\])]"

# What the files of each kind hold beside an encoder.
_OTHERS: tuple[dict[str, str], ...] = (
    _DECODER,
    {"fc_norm": "backbone.fc_norm", "head": "head.head"} | probe_norm("head.bn"),  # mmselfsup 0.x
    {"fc_norm": "backbone.ln2", "head": "head.fc"},  # mmpretrain, fine-tuned
    {"head": "head.layers.head"} | probe_norm("neck.bn"),  # mmpretrain, linear probe
)


def _read_metadata(
    beside: Mapping[str, Any], _file: Path, tensors: Mapping[str, Tensor]
) -> Metadata:
    """Read literal settings from the config text that most files hold in `meta`."""
    meta = beside.get("meta")
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, Mapping) else []
    text = next((text for text in texts if isinstance(text, str)), "")
    fields: dict[str, Any] = {}
    if (normalize := _one(r"\bnorm_pix(?:_loss)?\s*=\s*(True|False)", text)) is not None:
        fields["normalize_target"] = normalize == "True"
    if (heads := _one(r"\bnum_heads['\"]?\s*[=:]\s*(\d+)", text)) is not None:
        fields["num_heads"] = int(heads)
    elif (arch := _one(r"\barch\s*=\s*['\"]([\w-]+)['\"]", text)) in _HEADS_OF:
        fields["num_heads"] = _HEADS_OF[arch]
    if (heads := _one(r"\bdecoder_num_heads\s*=\s*(\d+)", text)) is not None:
        fields["decoder_heads"] = int(heads)
    mean, std = (_numbers(rf"\b{name}\s*=\s*{_NUMBERS}", text) for name in ("mean", "std"))
    projection = tensors.get("encoder.patch_embed.proj.weight")
    if projection is not None and {len(mean), len(std)} == {*projection.shape[1:2]}:
        scale = 255 if max(std) > 1 else 1  # for pixel values in [0, 255], or in [0, 1]
        m, s = (tuple(round(value / scale, 6) for value in each) for each in (mean, std))
        fields["pixels"] = PixelConfig(mean=m, std=s)
    return Metadata(fields, "by its config")


def _numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in (_one(pattern, text) or "").split(",") if number]


def _one(pattern: str, text: str) -> str | None:
    """Return the match of a pattern in a text if all matches are equal, else None."""
    found = {match[1] for match in re.finditer(pattern, text)}
    return found.pop() if len(found) == 1 else None


LAYOUT = Layout("openmmlab", tuple(_ENCODER | names for names in _OTHERS), _read_metadata)
