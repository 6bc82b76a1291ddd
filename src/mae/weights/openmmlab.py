"""The layout of OpenMMLab: mmselfsup 0.x and 1.x, mmpretrain 1.x. It is read, not written.

`state_dict` lies beside `meta`; pre-trained, fine-tuned (mean of the patches) and linear-probe
files differ in their heads alone. Its position tables have the row in the first half, the column
in the second: they are loaded as they are, so nothing needs to know.

Source: spec 5.7 (names only; no code is taken from there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae.weights.layout import Facts, Layout, Table, probe_norm

_ENCODER = {
    "encoder.cls_token": "backbone.cls_token",
    "encoder.pos_embed": "backbone.pos_embed",
    "encoder.patch_embed.proj": "backbone.patch_embed.projection",
    "encoder.norm": "backbone.ln1",
}
_DECODER = {
    "decoder.mask_token": "neck.mask_token",
    "decoder.pos_embed": "neck.decoder_pos_embed",
    "decoder.embed": "neck.decoder_embed",
    "decoder.norm": "neck.ln1",
    "decoder.pred": "neck.decoder_pred",
}
_BLOCKS = {"encoder.blocks": "backbone.layers", "decoder.blocks": "neck.decoder_blocks"}
_PARTS = {
    "norm1": "ln1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "ln2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


_HEADS: tuple[dict[str, str], ...] = (
    _DECODER,
    {"fc_norm": "backbone.fc_norm", "head": "head.head"} | probe_norm("head.bn"),  # mmselfsup 0.x
    {"fc_norm": "backbone.ln2", "head": "head.fc"},  # mmpretrain, fine-tuned
    {"head": "head.layers.head"} | probe_norm("neck.bn"),  # mmpretrain, linear probe
)


def _facts(beside: Mapping[str, Any], _file: Path) -> Facts:
    """Read the target from the text of the config, which `meta` holds in most files."""
    meta = beside.get("meta")
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, Mapping) else []
    text = next((text for text in texts if isinstance(text, str)), "")
    found = {m[1] == "True" for m in re.finditer(r"\bnorm_pix(?:_loss)?\s*=\s*(True|False)", text)}
    return Facts({"normalize_target": found.pop()} if len(found) == 1 else {})


LAYOUT = Layout(
    "openmmlab", tuple(Table(_ENCODER | heads, _BLOCKS, _PARTS) for heads in _HEADS), _facts
)
