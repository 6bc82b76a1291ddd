"""The published PyTorch layout: encoder names bare, decoder names with `decoder_`.

timm's ViT files have the same names for the encoder. `head.*` and `fc_norm.*` are a classifier's.

Source: spec 5.2, [FB] models_mae.py and util/misc.py (names only; no code is taken from there).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# ours: theirs. Everything else of ours begins with "encoder." and of theirs with nothing.
_NAMES = {
    "decoder.embed": "decoder_embed",
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.blocks": "decoder_blocks",
    "decoder.norm": "decoder_norm",
    "decoder.pred": "decoder_pred",
    "fc_norm": "fc_norm",
    "head": "head",
}
_OURS = {theirs: ours for ours, theirs in _NAMES.items()}


def recognises(names: Collection[str]) -> bool:
    """Tell whether most likely these are names of this layout, complete or not."""
    return any(name.startswith(("patch_embed.", "blocks.0.")) for name in names)


def to_ours(name: str) -> str:
    """Rename a tensor of the published layout: blocks.0.norm1.bias, mask_token ..."""
    group, dot, rest = name.partition(".")
    return _OURS[group] + dot + rest if group in _OURS else f"encoder.{name}"


def to_theirs(name: str) -> str:
    """Rename one of our tensors: encoder.blocks.0.norm1.bias, decoder.mask_token ..."""
    for ours, theirs in _NAMES.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name.removeprefix("encoder.")


def training_facts(beside: Mapping[str, Any]) -> dict[str, object]:
    """Read, from what lies beside the model, the fields of `ModelConfig` that tensors do not tell.

    Args:
        beside: `args` of the published training script, a Namespace, where there is one.
    """
    found = getattr(beside.get("args"), "__dict__", {})
    normalize, ratio = found.get("norm_pix_loss"), found.get("mask_ratio")
    facts: dict[str, object] = {}
    if isinstance(normalize, bool):
        facts["normalize_target"] = normalize
    if isinstance(ratio, float) and 0 < ratio < 1:
        facts["mask_ratio"] = ratio
    return facts


def write(path: Path, tensors: Mapping[str, Tensor], *, description: str) -> None:
    """Write a `.pth` that the published code and timm load, with our description beside.

    Args:
        path: file to write.
        tensors: by our names.
        description: the JSON of `folder.Description`, so that reading it back need not guess.
    """
    torch.save({"model": {to_theirs(n): t for n, t in tensors.items()}, "mae": description}, path)
