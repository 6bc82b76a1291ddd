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
from collections.abc import Iterator, Mapping
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
            got = f"model_args: {argument} {value!r}"
            raise WeightsError(f"{config}: {got}: is no argument of a plain vision transformer")
    try:
        # Leaves the random state of the process unchanged.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make: Any = partial(timm.create_model, name) if known else VisionTransformer
            built = make(**args)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WeightsError(f"{config}: timm cannot build {name}: {why}") from error
    for argument, value, ours in _arguments(built):
        if value != ours:
            text = getattr(value, "__name__", value)
            raise WeightsError(f"{config}: {name} has {argument} {text}, which is not supported")
    fields, block = {**metadata.fields}, built.blocks[0]
    if known or "num_heads" in args:
        fields["num_heads"] = block.attn.num_heads
    if known:
        fields["norm_eps"] = block.norm1.eps
        return metadata._replace(fields=fields, gelu=True, pool=_pool(built))
    unknown = f"names the architecture {name}, which timm {timm.__version__} does not know"
    note = f"{config}: {unknown}; assumed a plain vision transformer"
    return metadata._replace(fields=fields, notes=(note,))


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


def _arguments(built: Any) -> Iterator[tuple[str, object, object]]:
    """Yield arguments of a network of timm, with their values and those of mae's network.

    A value is read only after the types of all parts are known to be those of mae.
    """
    from timm.models import vision_transformer

    theirs: Any = vision_transformer
    yield "the architecture", type(built), theirs.VisionTransformer
    block, embed = built.blocks[0], built.patch_embed
    yield "block_fn", type(block), theirs.Block
    yield "embed_layer", type(embed), theirs.PatchEmbed
    attn, mlp, norm, x = block.attn, block.mlp, block.norm1, torch.linspace(-4, 4, 65)
    yield "attn_layer", type(attn), theirs.Attention
    yield "mlp_layer", type(mlp), theirs.Mlp
    yield "class_token", built.cls_token is not None, True
    yield "reg_tokens", getattr(built, "num_reg_tokens", 0), 0
    yield "pos_embed", built.pos_embed is not None, True
    yield "no_embed_class", built.no_embed_class, False
    yield "pre_norm", _is_there(built.norm_pre), False
    yield "embed_norm_layer", _is_there(embed.norm), False
    yield "qkv_bias", attn.qkv.bias is not None, True
    yield "proj_bias", attn.proj.bias is not None, True
    yield "qk_norm", _is_there(attn.q_norm), False
    yield "scale_attn_norm", _is_there(getattr(attn, "norm", None)), False
    yield "scale_mlp_norm", _is_there(mlp.norm), False
    yield "init_values", _is_there(block.ls1), False
    yield "final_norm", _is_there(built.norm) or _is_there(built.fc_norm), True
    yield "global_pool", _is_there(built.attn_pool) and built.global_pool, False
    is_layer_norm = isinstance(norm, nn.LayerNorm) and norm.elementwise_affine
    yield "norm_layer", not is_layer_norm and type(norm).__name__, False
    is_gelu = torch.allclose(mlp.act(x), nn.functional.gelu(x), rtol=0, atol=1e-6)
    yield "act_layer", not is_gelu and type(mlp.act).__name__, False


def _is_there(part: nn.Module | None) -> bool:
    return part is not None and not isinstance(part, nn.Identity)


def _pool(built: Any) -> str:
    """Return the pooling of a head: mean, cls, or timm's arguments for an unsupported one."""
    extras = " with pool_include_prefix" if getattr(built, "pool_include_prefix", False) else ""
    extras += "" if _is_there(built.fc_norm) else " without fc_norm"
    if built.global_pool == "token":
        return "cls"
    if built.global_pool == "avg" and not extras:
        return "mean"
    return f"global_pool {built.global_pool!r}{extras}"


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
