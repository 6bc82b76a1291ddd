"""Read the model config from config.json of timm's Hub folders.

timm builds one block of the architecture with the arguments of the file, and the result is
inspected, so that no list of names or defaults is needed here. An argument that the network of
mae does not support is rejected by name.

Source: timm 1.0.31, models/_hub.py (save_config_for_hf) and models/vision_transformer.py.
"""

from __future__ import annotations

import inspect
import json
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
from mae.weights.formats.name_table import Facts

CONFIG = "config.json"

_LARGEST = 2**16  # limit of integer arguments


def read(config: Path, tensors: Mapping[str, Tensor]) -> Facts | None:
    """Read the config; None if it does not exist or was not written by timm.

    Args:
        config: path of config.json; need not exist.
        tensors: by mae's names; their shapes give the sizes of the network.

    Raises:
        WeightsError: for a network that mae does not support.
    """
    if not config.is_file():
        return None
    try:
        said = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{config}: cannot be read: {error}; get it again") from error
    if not isinstance(said, dict) or not isinstance(said.get("architecture"), str):
        return None
    # Before timm 0.9.3 the keys of pretrained_cfg were at the top level.
    pretrained, args = said.get("pretrained_cfg", said), said.get("model_args") or {}
    if not isinstance(pretrained, dict) or not isinstance(args, dict):
        raise WeightsError(f"{config}: pretrained_cfg and model_args: expected named values")
    fields: dict[str, Any] = {}
    # Without recorded arguments, input_size may be that of the weights used for initialisation.
    for size in (args.get("img_size"), (pretrained.get("input_size") or [None])[1:]):
        if (found := _pair(size)) is not None and _fits(found, tensors):
            fields.setdefault("image_size", found)
    # The evaluation crop of the weights; timm's interpolation has no field in `ModelConfig`.
    shown = pretrained.get("crop_pct")
    if isinstance(shown, float) and 0 < shown <= 1:
        fields["crop_pct"] = shown
    if (pixels := _pixels(pretrained, config, tensors)) is not None:
        fields["pixels"] = pixels
    return _of_network(config, said["architecture"], args, tensors, Facts(
        fields, source=config.name, class_names=_class_names(said, pretrained),
    ))  # fmt: skip


def _of_network(
    config: Path, name: str, args: dict[str, Any], tensors: Mapping[str, Tensor], facts: Facts
) -> Facts:
    """Add the properties of the built network: heads, eps, activation, pool."""
    shapes = _shapes(tensors)
    if shapes is None:  # reported when the tensors are checked
        return facts
    import timm
    from timm.models.vision_transformer import VisionTransformer

    known = bool(re.fullmatch(r"\w+(\.\w+)?", name)) and timm.is_model(name)
    taken = inspect.signature(VisionTransformer.__init__).parameters
    for argument, value in args.items():
        if argument not in taken or (isinstance(value, int) and abs(value) > _LARGEST):
            raise WeightsError(
                f"{config}: model_args: {argument} {value!r}: is no argument of a plain vision "
                "transformer; this model cannot be held"
            )
    own = {argument: value for argument, value in args.items() if argument != "depth"} | shapes
    try:
        # Leaves the random state of the process unchanged.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make: Any = partial(timm.create_model, name) if known else VisionTransformer
            built = make(**own)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        raise WeightsError(
            f"{config}: timm {timm.__version__} cannot build {name} of its model_args: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if wrong := _differs(built):
        raise WeightsError(
            f"{config}: {name} has {wrong}, which this network has not; this model cannot be held"
        )
    if not known:
        heads = {"num_heads": built.blocks[0].attn.num_heads} if "num_heads" in args else {}
        note = (
            f"{config}: names the architecture {name}, which timm {timm.__version__} does not "
            "know; assumed a plain vision transformer"
        )
        return facts._replace(fields={**facts.fields, **heads}, notes=(note,))
    block = built.blocks[0]
    own_fields = {"num_heads": block.attn.num_heads, "norm_eps": block.norm1.eps}
    return facts._replace(fields={**facts.fields, **own_fields}, gelu=True, pool=_pool(built))


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
    attn, mlp, x = block.attn, block.mlp, torch.linspace(-4, 4, 65)
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
    ):
        if value != expected:
            return f"{argument} {value}"
    if _is_there(built.attn_pool):
        return f"global_pool {built.global_pool}"
    if not isinstance(block.norm1, nn.LayerNorm) or not block.norm1.elementwise_affine:
        return f"norm_layer {type(block.norm1).__name__}"
    if not torch.allclose(mlp.act(x), nn.functional.gelu(x), rtol=0, atol=1e-6):
        return f"act_layer {type(mlp.act).__name__}"
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


def _pixels(
    pretrained: Mapping[str, Any], where: Path, tensors: Mapping[str, Tensor]
) -> PixelConfig | None:
    """Read mean and std, if there is one value per channel."""
    projection = tensors.get("encoder.patch_embed.proj.weight")
    said = {name: pretrained.get(name) for name in ("mean", "std")}
    lengths = {len(values) for values in said.values() if isinstance(values, list)}
    if projection is None or None in said.values() or lengths != {*projection.shape[1:2]}:
        return None
    try:
        return from_dict(PixelConfig, said, where=str(where))
    except ConfigError as error:
        raise WeightsError(f"{where}: pretrained_cfg: {error}") from error


def _pair(value: object) -> tuple[int, int] | None:
    pair = [value, value] if isinstance(value, int) else value
    if isinstance(pair, list) and len(pair) == 2 and all(type(edge) is int for edge in pair):
        return pair[0], pair[1]
    return None


def _fits(size: tuple[int, int], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether images of a size have as many patches as position embeddings."""
    table, projection = (
        tensors.get(f"encoder.{name}") for name in ("pos_embed", "patch_embed.proj.weight")
    )
    if table is None or projection is None or table.ndim != 3 or 0 in projection.shape[2:]:
        return False
    h, w = (edge // projection.shape[-1] for edge in size)
    return h * w == table.shape[1] - 1


def _class_names(said: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple[str, ...]:
    names = said.get("label_names") or pretrained.get("label_names")
    if isinstance(names, Mapping):
        names = [names.get(str(number)) for number in range(len(names))]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()
