"""The layout of lightly 1.6: timm's encoder within a backbone, the published decoder beside it.

A module with `backbone` and `decoder`, whatever it is wrapped in, or the state dict of either
alone (that of a decoder has the published names). It is read, not written.

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
    # A mask token of the encoder and the head of the ViT within, which take no part in MAE.
    unused = {"unused.mask_token": f"{backbone}mask_token", "unused.head": f"{backbone}vit.head"}
    blocks = {
        "encoder.blocks": f"{backbone}vit.{BLOCKS['encoder.blocks']}",
        "decoder.blocks": decoder + BLOCKS["decoder.blocks"],
    }
    return Table(plain | unused, blocks, SAME_PARTS)


def _facts(_beside: Mapping[str, Any], _file: Path, _tensors: Mapping[str, Tensor]) -> Facts:
    # As in lightly's examples.
    return Facts(assumed={"normalize_target": False})


LAYOUT = Layout("lightly", (_table("backbone.", "decoder."), _table("", "decoder.")), _facts)
