"""`Dinov2Model` of transformers: a folder that heads for dense tasks take as a backbone.

The network is that of mae with a factor per channel at the end of each residual branch
(LayerScale). Written, the factors are 1 and the mask token, which only its own pre-training uses,
is 0. Read, the factors are multiplied into the layers before them. Networks with register tokens
or a gated MLP are rejected. Written is the older naming scheme, which every version loads.

Source: names and defaults of transformers 5.24 (Dinov2Config, Dinov2Model).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mae.config.model import hidden_width
from mae.weights.formats.huggingface import (
    ENCODER,
    NEWER_ATTENTION,
    OLDER_ATTENTION,
    ViTFields,
    encoder_fields,
    read_configs,
    write_folder,
)
from mae.weights.formats.name_table import (
    LAYERS,
    ClassifierDescription,
    Description,
    Layout,
    Metadata,
    block_names,
    renamed,
    split_qkv,
)
from mae.weights.formats.native import CONFIG

_OWN_LAYERS = {name: name for name in LAYERS if not name.startswith("attn")} | {
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
}
_OLDER, _NEWER = (
    ENCODER
    | {"unused.mask_token": "embeddings.mask_token"}
    | block_names("encoder.blocks", "encoder.layer", _OWN_LAYERS | attention)
    for attention in (OLDER_ATTENTION, NEWER_ATTENTION)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config(ViTFields):
    layer_norm_eps: float = 1e-6
    patch_size: int = 14
    use_swiglu_ffn: Literal[False] = False


def _read_metadata(_: Mapping[str, Any], file: Path, _tensors: Mapping[str, Tensor]) -> Metadata:
    config, fields, stored, _where = read_configs(file, _Config)
    if stored:
        fields |= {"norm_eps": config.layer_norm_eps, "num_heads": config.num_attention_heads}
    return Metadata(fields, f"by {CONFIG}", gelu=bool(stored))


def _refuses(description: Description, names: Collection[str]) -> str | None:
    model = description.model
    if isinstance(description, ClassifierDescription):
        if description.pool == "mean":
            return "it needs the encoder's norm, which fc_norm replaced; give pre-trained weights"
        return "it has no classifier's head; give --encoder-only to leave it"
    if any(name.startswith("decoder.") for name in names):
        return "it has no decoder; give --encoder-only to leave it"
    if model.grid[0] != model.grid[1]:
        return f"its grid of patches is square, that of this model {model.grid}"
    if hidden_width(model.width, model.mlp_ratio) % model.width:
        return f"its mlp_ratio is a whole number, that of this model {model.mlp_ratio:g}"
    return None


def _write(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a folder that `from_pretrained` of transformers loads."""
    model = description.model
    config = {"architectures": ["Dinov2Model"], "model_type": "dinov2", "torch_dtype": "float32"}
    config |= encoder_fields(model) | {
        "mlp_ratio": hidden_width(model.width, model.mlp_ratio) // model.width,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
    }
    blocks = range(model.depth)
    scales = {
        f"encoder.blocks.{i}.scale{n}": torch.ones(model.width) for i in blocks for n in (1, 2)
    }
    own = {"unused.mask_token": torch.zeros(1, model.width), **scales}
    write_folder(path, config, renamed(_OLDER, split_qkv(tensors) | own), model)


LAYOUT = Layout("dinov2", (_OLDER, _NEWER), _read_metadata, _write, _refuses)
