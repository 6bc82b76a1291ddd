"""Read the model config from config.json of timm's Hub folders.

timm builds one block of the architecture with the arguments of the file, and the result is
inspected, so that no list of names or defaults is needed here. An argument that the network of
mae does not support is rejected by name.

Source: timm 1.0.31, models/_hub.py (save_config_for_hf) and models/vision_transformer.py.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.config.model import PixelConfig
from mae.config.serialize import from_dict
from mae.errors import ConfigError, WeightsError
from mae.weights.formats.name_table import Metadata
from mae.weights.io.file_checks import read_json

CONFIG = "config.json"

_LARGEST = 2**16  # limit of integer arguments


def read(config: Path, tensors: Mapping[str, Tensor]) -> Metadata | None:
    """Read the config; None if it does not exist or was not written by timm.

    Args:
        config: path of config.json; need not exist.
        tensors: by mae's names; their shapes give the sizes of the network.

    Raises:
        WeightsError: for a network that mae does not support.
    """
    stored = read_json(config)
    if not isinstance(stored, dict) or not isinstance(stored.get("architecture"), str):
        return None
    # Before timm 0.9.3 the keys of pretrained_cfg were at the top level.
    pretrained, args = stored.get("pretrained_cfg", stored), stored.get("model_args") or {}
    if not isinstance(pretrained, dict) or not isinstance(args, dict):
        raise WeightsError(f"{config}: pretrained_cfg and model_args: expected named values")
    shapes = _shapes(tensors)
    if shapes is None:  # reported when the tensors are checked
        return Metadata()
    fields: dict[str, Any] = {}
    positions, p = tensors.get("encoder.pos_embed"), shapes["patch_size"]
    L = positions.shape[1] - 1 if positions is not None and positions.ndim == 3 else None
    # Without recorded arguments, input_size may be that of the weights used for initialisation.
    for size in (args.get("img_size"), (pretrained.get("input_size") or [None])[1:]):
        found = _pair(size)
        if found is not None and (found[0] // p) * (found[1] // p) == L:
            fields.setdefault("image_size", found)
    # The evaluation crop of the weights; timm's interpolation has no field in `ModelConfig`.
    crop_pct = pretrained.get("crop_pct")
    if isinstance(crop_pct, float) and 0 < crop_pct <= 1:
        fields["crop_pct"] = crop_pct
    if (pixels := _pixels(pretrained, config, shapes["in_chans"])) is not None:
        fields["pixels"] = pixels
    metadata = Metadata(fields, f"by {CONFIG}", class_names=_class_names(stored, pretrained))
    return _with_network(metadata, config, stored["architecture"], args | shapes)


def _with_network(metadata: Metadata, config: Path, name: str, args: dict[str, Any]) -> Metadata:
    """Build the network, and add its properties: heads, eps, activation, pool."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    known = bool(re.fullmatch(r"\w+(\.\w+)?", name)) and timm.is_model(name)
    accepted = inspect.signature(VisionTransformer.__init__).parameters
    for argument, value in args.items():
        if argument not in accepted or (isinstance(value, int) and abs(value) > _LARGEST):
            raise WeightsError(
                f"{config}: model_args: {argument} {value!r}: no argument of a plain vision "
                "transformer, expected one; mae does not support this model"
            )
    try:
        # Leaves the random state of the process unchanged.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make: Any = partial(timm.create_model, name) if known else VisionTransformer
            built = make(**args)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        raise WeightsError(
            f"{config}: timm {timm.__version__} cannot build {name} of its model_args: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if wrong := _differs(built):
        raise WeightsError(f"{config}: {name} has {wrong}, which mae does not support")
    block = built.blocks[0]
    fields = {"num_heads": block.attn.num_heads, "norm_eps": block.norm1.eps}
    if known:
        own = {**metadata.fields, **fields}
        return metadata._replace(fields=own, gelu=True, pool=_pool(built))
    note = (
        f"{config}: names the architecture {name}, which timm {timm.__version__} does not "
        "know; assumed a plain vision transformer"
    )
    heads = {"num_heads": fields["num_heads"]} if "num_heads" in args else {}
    return metadata._replace(fields={**metadata.fields, **heads}, notes=(note,))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the sizes of a network of one block and one patch, as arguments of timm."""
    projection = tensors.get("encoder.patch_embed.proj.weight")
    fc1 = tensors.get("encoder.blocks.0.mlp.fc1.weight")
    if projection is None or projection.ndim != 4 or 0 in projection.shape:
        return None
    width, channels, height, _ = projection.shape
    hidden = 4 * width if fc1 is None else len(fc1)
    return {
        "img_size": height,
        "patch_size": height,
        "in_chans": channels,
        "embed_dim": width,
        "depth": 1,
        "mlp_ratio": (hidden + 0.5) / width,  # timm truncates the product to an integer
        "num_classes": 0,
    }


def _differs(model: nn.Module) -> str | None:
    """Return the argument in which a network of timm differs from mae's; None if there is none."""
    from timm.models import vision_transformer as theirs

    built: Any = model
    if type(model) is not theirs.VisionTransformer:
        return f"the architecture {type(built).__name__}"
    block, embed = built.blocks[0], built.patch_embed
    kinds: dict[str, tuple[Any, str]] = {
        "block_fn": (block, "Block"),
        "embed_layer": (embed, "PatchEmbed"),
        "attn_layer": (getattr(block, "attn", None), "Attention"),
        "mlp_layer": (getattr(block, "mlp", None), "Mlp"),
    }
    for argument, (part, kind) in kinds.items():
        if type(part) is not getattr(theirs, kind):
            return f"{argument} {type(part).__name__}"
    attn, mlp, norm, x = block.attn, block.mlp, block.norm1, torch.linspace(-4, 4, 65)
    is_layer_norm = isinstance(norm, nn.LayerNorm) and norm.elementwise_affine
    is_gelu = torch.allclose(mlp.act(x), nn.functional.gelu(x), rtol=0, atol=1e-6)
    for argument, value, expected in (
        ("class_token", built.cls_token is not None, True),
        ("reg_tokens", getattr(built, "num_reg_tokens", 0), 0),
        ("pos_embed", built.pos_embed is not None, True),
        ("no_embed_class", built.no_embed_class, False),
        ("pre_norm", _is_there(built.norm_pre), False),
        ("embed_norm_layer", _is_there(embed.norm), False),
        ("qkv_bias", attn.qkv.bias is not None, True),
        ("proj_bias", attn.proj.bias is not None, True),
        ("qk_norm", _is_there(attn.q_norm), False),
        ("scale_attn_norm", _is_there(getattr(attn, "norm", None)), False),
        ("scale_mlp_norm", _is_there(mlp.norm), False),
        ("init_values", _is_there(block.ls1), False),
        ("final_norm", _is_there(built.norm) or _is_there(built.fc_norm), True),
        ("global_pool", _is_there(built.attn_pool) and built.global_pool, False),
        ("norm_layer", not is_layer_norm and type(norm).__name__, False),
        ("act_layer", not is_gelu and type(mlp.act).__name__, False),
    ):
        if value != expected:
            return f"{argument} {value}"
    return None


def _is_there(part: nn.Module | None) -> bool:
    return part is not None and not isinstance(part, nn.Identity)


def _pool(built: Any) -> str:
    """Return the pooling of a head: mean, cls, or timm's arguments for an unsupported one."""
    pool, normed = built.global_pool, _is_there(built.fc_norm)
    if pool == "token":
        return "cls"
    if pool == "avg" and normed and not getattr(built, "pool_include_prefix", False):
        return "mean"
    prefix = " with pool_include_prefix" * bool(getattr(built, "pool_include_prefix", False))
    return f"global_pool {pool!r}{prefix}{'' if normed else ' without fc_norm'}"


def _pixels(pretrained: Mapping[str, Any], where: Path, channels: int) -> PixelConfig | None:
    """Read mean and std, if there is one value per channel."""
    stored = {name: pretrained.get(name) for name in ("mean", "std")}
    lengths = {len(values) for values in stored.values() if isinstance(values, list)}
    if None in stored.values() or lengths != {channels}:
        return None
    try:
        return from_dict(PixelConfig, stored, where=str(where))
    except ConfigError as error:
        raise WeightsError(f"{where}: pretrained_cfg: {error}") from error


def _pair(value: object) -> tuple[int, int] | None:
    pair = [value, value] if isinstance(value, int) else value
    if isinstance(pair, list) and len(pair) == 2 and all(type(edge) is int for edge in pair):
        return pair[0], pair[1]
    return None


def _class_names(stored: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple[str, ...]:
    names = stored.get("label_names") or pretrained.get("label_names")
    if isinstance(names, Mapping):
        names = [names.get(str(number)) for number in range(len(names))]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()
