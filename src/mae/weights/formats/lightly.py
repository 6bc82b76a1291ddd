"""Checkpoint layout of lightly 1.6 (read only).

timm's encoder is inside `backbone`, and `decoder` has the published names. Readable are a module
with both, in any wrapper, or the state dict of either alone.

Source: names of lightly 1.6.0 (MaskedVisionTransformerTIMM, MAEDecoderTIMM).
"""

from __future__ import annotations

from mae.weights.formats.facebook import DECODER, ENCODER
from mae.weights.formats.name_table import Layout, Metadata, Table


def _table(backbone: str) -> Table:
    names = {ours: f"{backbone}vit.{theirs}" for ours, theirs in ENCODER.items()}
    names |= {ours: f"decoder.{theirs}" for ours, theirs in DECODER.items()}
    # The mask token of the encoder and the head of timm's ViT, which MAE does not use.
    unused = {"unused.mask_token": f"{backbone}mask_token", "unused.head": f"{backbone}vit.head"}
    return names | unused


LAYOUT = Layout(
    "lightly",
    (_table("backbone."), _table("")),
    # The target in lightly's examples.
    lambda _beside, _file, _tensors: Metadata(assumed={"normalize_target": False}),
)
