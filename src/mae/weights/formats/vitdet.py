"""Checkpoint layout of ViTDet in detectron2 (read only): a detector on windows.

Read are the backbone (`backbone.net`: no cls token, no last norm; relative positions in each
block) and the simple pyramid (`backbone.simfp_2` to `simfp_5`). The proposal network and the heads
of boxes and masks are recognised by name and left: their anchors, pooling and order of classes are
detectron2's.

Source: names of github.com/facebookresearch/detectron2, modeling/backbone/vit.py, rpn.py,
box_head.py, cascade_rcnn.py and mask_head.py (names only; no code is copied).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mae.weights.formats.name_table import LAYERS, Layout, Metadata, block_names

NAME = "vitdet"

_NET = {
    "encoder.pos_embed": "backbone.net.pos_embed",
    "encoder.patch_embed.proj": "backbone.net.patch_embed.proj",
    **block_names("encoder.blocks", "backbone.net.blocks", LAYERS),
    "encoder.relative.*.rel_pos_h": "backbone.net.blocks.*.attn.rel_pos_h",
    "encoder.relative.*.rel_pos_w": "backbone.net.blocks.*.attn.rel_pos_w",
}
_PYRAMID = {
    "pyramid.levels.0.0.0": "backbone.simfp_2.0",
    "pyramid.levels.0.0.1": "backbone.simfp_2.1",
    "pyramid.levels.0.0.3": "backbone.simfp_2.3",
    "pyramid.levels.1.0": "backbone.simfp_3.0",
}
# Number of the first of the two convolutions of each level, behind the layers of its scale.
for _level, _first in enumerate((4, 1, 0, 1)):
    for _conv in (0, 1):
        _ours = f"pyramid.levels.{_level}.{1 + _conv}"
        _theirs = f"backbone.simfp_{2 + _level}.{_first + _conv}"
        _PYRAMID |= {f"{_ours}.conv": _theirs, f"{_ours}.norm": f"{_theirs}.norm"}

_RPN = ("conv", "conv.conv0", "conv.conv1", "objectness_logits", "anchor_deltas")
_CONVS = tuple(f"conv{n}" for n in range(1, 5))
_BOXES = tuple(
    f"{head}.{stage}{layer}"
    for stage in ("", "0.", "1.", "2.")  # the stages of a cascade
    for head, layers in (
        ("box_head", (*_CONVS, *(f"{conv}.norm" for conv in _CONVS), "fc1")),
        ("box_predictor", ("cls_score", "bbox_pred")),
    )
    for layer in layers
)
_MASKS = tuple(
    f"mask_head.{layer}"
    for layer in ("deconv", "predictor", *(f"mask_fcn{n}" for n in range(1, 5)),
                  *(f"mask_fcn{n}.norm" for n in range(1, 5)))
)  # fmt: skip
_LEFT = {f"rpn.{layer}": f"proposal_generator.rpn_head.{layer}" for layer in _RPN}
_LEFT |= {f"roi_heads.{layer}": f"roi_heads.{layer}" for layer in (*_BOXES, *_MASKS)}
# Buffers of older files, all of them constants.
_LEFT |= {f"unused.{name}": name for name in ("pixel_mean", "pixel_std")}
_LEFT |= {
    f"rpn.cell_anchors.{n}": f"proposal_generator.anchor_generator.cell_anchors.{n}"
    for n in range(5)
}


def _read_metadata(_: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> Metadata:
    """Read the number of heads from the tables of relative positions, which have their width."""
    table = tensors.get("encoder.relative.0.rel_pos_h")
    projection = tensors.get("encoder.patch_embed.proj.weight")
    if table is None or projection is None or table.ndim != 2 or projection.ndim != 4:
        return Metadata()
    width, head_width = len(projection), table.shape[1]
    if not head_width or width % head_width:
        return Metadata()
    return Metadata({"num_heads": width // head_width}, "by its relative positions")


LAYOUT = Layout(NAME, (_NET | _PYRAMID | _LEFT,), _read_metadata)
