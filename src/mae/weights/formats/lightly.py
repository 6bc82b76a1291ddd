"""Checkpoint layout of lightly 1.6 (read only).

timm's encoder is inside `backbone`, and `decoder` has the published names. Readable are a module
with both, in any wrapper, or the state dict of either alone.

Source: names of lightly 1.6.0 (MaskedVisionTransformerTIMM, MAEDecoderTIMM).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mae.weights.formats.facebook import BLOCKS, DECODER, ENCODER, SAME_PARTS
from mae.weights.formats.name_table import Facts, Layout, Table


def _table(backbone: str, decoder: str) -> Table:
    plain = {ours: f"{backbone}vit.{theirs}" for ours, theirs in ENCODER.items()}
    plain |= {ours: decoder + theirs for ours, theirs in DECODER.items()}
    # The mask token of the encoder and the head of timm's ViT, which MAE does not use.
    unused = {"unused.mask_token": f"{backbone}mask_token", "unused.head": f"{backbone}vit.head"}
    blocks = {
        "encoder.blocks": f"{backbone}vit.{BLOCKS['encoder.blocks']}",
        "decoder.blocks": decoder + BLOCKS["decoder.blocks"],
    }
    return Table(plain | unused, blocks, SAME_PARTS)


def _facts(_beside: Mapping[str, Any], _file: Path, _tensors: Mapping[str, Tensor]) -> Facts:
    # The target in lightly's examples.
    return Facts(assumed={"normalize_target": False})


LAYOUT = Layout("lightly", (_table("backbone.", "decoder."), _table("", "decoder.")), _facts)
